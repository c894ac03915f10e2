"""Writes the report of a study: a page, Markdown, figures and tables.

The page is self-contained: it makes no requests, and contains text and images only.
Jinja2 escapes the text. Its content security policy allows only embedded images, one
style sheet and one script, by their hashes.
"""

import base64
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from twostage_jax import io
from twostage_jax.errors import UserError
from twostage_jax.report import checklist, figures, sections, study_table, tables
from twostage_jax.report.analysis import analyse
from twostage_jax.report.artefacts import gather
from twostage_jax.report.parts import (
    PAGE,
    Cards,
    Details,
    Node,
    Part,
    Picture,
    Saved,
    Text,
    Tree,
    walk,
)
from twostage_jax.report.sections import Report
from twostage_jax.report.study_table import Study

# Larger than in print (96 per CSS inch), so that 7 pt text is legible on a screen.
PIXELS_PER_INCH = 118


def write_report(workdirs: Sequence[Path], out: Path) -> Path:
    """Joins run folders, writes the report into `out` and returns the page's path.

    `out` gets `report.html`, `report.md`, `checklist.md`, `table.tex`, `figures/*.png`
    and `.pdf`, and `tables/*.csv`. An earlier report is replaced as a whole once the new
    one is complete, and kept on failure. A lock file next to `out` serialises processes
    that write to it.

    Raises:
      UserError: The folders are not a study (see `study_table.load`), every seed is
        incomplete, or `out` holds something other than a report.
    """
    out = Path(out)
    # The lock includes the reading: when seeds end together, the process that read
    # first, with rows missing, must not write last.
    with io.locked(out.with_name(f".{out.name}.lock"), f"--out={out}", wait=True):
        return _write_report([Path(folder) for folder in workdirs], out)


def markdown(report: sections.Report) -> str:
    """Returns the report as Markdown with links to the figures."""
    lines = [f"# {tables.escape(report.title)}"]
    lines += [tables.escape(text) for text in report.summary]
    if report.warnings:
        lines += ["## Missing and skipped"]
        lines += ["\n".join(f"- {tables.escape(text)}" for text in report.warnings)]
    for section in report.sections:
        lines.append(f"## {section.title}")
        lines += [_markdown(part) for part in section.parts]
    return "\n\n".join(lines) + "\n"


def html(report: Report, study: Study) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twostage_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )

    def source(name: str) -> str:
        return environment.loader.get_source(environment, name)[0]

    colours = "".join(
        f".arm{number} {{ background: {figures.arm_style(arm)['color']}; }}\n"
        for number, arm in enumerate(study.arms)
    )
    style, script = source("page.css") + colours, source("page.js")
    return environment.get_template("page.html.jinja").render(
        report=report,
        arms={arm: number for number, arm in enumerate(study.arms)},
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        kind_of=lambda part: type(part).__name__,
        svg_uri=lambda part: _uri(figures.svg(part.figure), "svg+xml"),
        png_uri=lambda data: _uri(data, "png"),
        width=lambda part: round(_inches(part) * PIXELS_PER_INCH),
        narrow=lambda part: _inches(part) <= figures.COLUMN,
    )


def _write_report(workdirs: Sequence[Path], out: Path) -> Path:
    _check_out(out)
    study = study_table.load(workdirs)
    report = sections.build(study, analyse(study), gather(study))
    parts = walk([part for section in report.sections for part in section.parts])
    with io.replacing_folder(out) as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        for part in parts:
            if isinstance(part, Picture):
                figures.save(part.figure, folder / "figures" / part.name)
            elif isinstance(part, Saved):
                (folder / "figures" / f"{part.name}.png").write_bytes(part.png)
                (folder / "figures" / f"{part.name}.pdf").write_bytes(part.pdf)
            elif isinstance(part, tables.Table):
                _write(folder / "tables" / f"{part.name}.csv", tables.csv_text(part))
        _write(folder / "table.tex", tables.latex(report.result, "tab:result"))
        _write(folder / "tables" / "result.csv", tables.csv_text(report.result))
        _write(folder / "report.md", markdown(report))
        _write(folder / checklist.FILE, _checklist(report))
        _write(folder / PAGE, html(report, study))
    return out / PAGE


def _checklist(report: Report) -> str:
    """Returns the checklists as Markdown."""
    (section,) = (one for one in report.sections if one.anchor == "checklists")
    parts = [_markdown(part) for part in walk(section.parts)]
    title = f"# {section.title}: {tables.escape(report.title)}"
    return "\n\n".join([title, *parts]) + "\n"


def _check_out(out: Path) -> None:
    """Raises a UserError if a report must not replace `out`."""
    # Training removes only the page when the results change.
    io.check_out(out, "report", [PAGE, "tables/result.csv"])
    if (out / "results.json").exists():
        raise UserError.flag(
            "--out", out, "this is a run folder: give a folder inside it."
        )


def _markdown(part: Part) -> str:
    if isinstance(part, Text):
        return tables.escape(part.text)
    if isinstance(part, tables.Table):
        return tables.markdown(part)
    if isinstance(part, Picture):
        alt = tables.escape(part.alt).replace("]", "\\]")
        image = f"![{alt}](figures/{part.name}.png)"
        return f"{image}\n\n{tables.escape(part.caption)}"
    if isinstance(part, Cards):
        lines = [f"{card.alt}: {', '.join(card.lines)}" for card in part.cards]
        listed = "\n".join(f"- {tables.escape(line)}" for line in lines)
        listed = listed or "All test patches are correct."
        return f"### {tables.escape(part.title)}\n\n{listed}"
    if isinstance(part, Tree):
        return "\n".join(_branches(part.nodes, 0))
    assert isinstance(part, Details)
    return _folded(part)


def _folded(part: Details) -> str:
    """Returns links to the folded tables and figures."""
    files = [f"[{name}]({name})" for name in part.files]
    texts = [one.text for one in part.parts if isinstance(one, Text)]
    text = f" {tables.escape(' '.join(texts))}" if texts else ""
    return f"{tables.escape(part.title)}: {', '.join(files)}.{text}"


def _branches(nodes: Sequence[Node], depth: int) -> Iterator[str]:
    for node in nodes:
        title, text = tables.escape(node.title), tables.escape(node.text)
        yield f"{'  ' * depth}- **{title}**: {text}"
        yield from _branches(node.children, depth + 1)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _inches(part: Picture | Saved) -> float:
    """Returns the width of a figure in print."""
    if isinstance(part, Picture):
        return float(part.figure.get_size_inches()[0])
    (pixels,) = struct.unpack(">I", part.png[16:20])
    return pixels / figures.STYLE["savefig.dpi"]
