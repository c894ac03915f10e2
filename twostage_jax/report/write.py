"""Writes the report of a study: a page, Markdown, figures, tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from twostage_jax import io
from twostage_jax.errors import UserError
from twostage_jax.report import content, figures, formats, load, tables
from twostage_jax.report.analysis import analyse
from twostage_jax.report.artefacts import gather
from twostage_jax.report.page import html
from twostage_jax.report.parts import (
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

PAGE = "report.html"


def write_report(workdirs: Sequence[Path], out: Path) -> Path:
    """Joins run folders, writes the report into `out` and returns the page's path.

    `out` gets `report.html`, `report.md`, `table.tex`, `figures/*.png` and `.pdf`, and
    `tables/*.csv`. An earlier report there is replaced as a whole, when the new one is
    finished, and stays if it cannot be. Processes that write to the same `out` do so one
    after the other, by a lock file beside it.

    Raises:
      UserError: The folders are no study (see `load.load`), no seed is whole in every
        arm, or `out` holds something else than a report.
    """
    out = Path(out)
    # Around the reading too: seeds that end together must not leave the report of the
    # one that read first, which lacks rows.
    with io.locked(out.with_name(f".{out.name}.lock"), f"--out={out}", wait=True):
        return _write_report([Path(folder) for folder in workdirs], out)


def _write_report(workdirs: Sequence[Path], out: Path) -> Path:
    _check_out(out)
    study = load.load(workdirs)
    report = content.build(study, analyse(study), gather(study))
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
            elif isinstance(part, formats.Table):
                _write(folder / "tables" / f"{part.name}.csv", formats.csv_text(part))
        _write(folder / "table.tex", formats.latex(report.result, "tab:result"))
        _write(folder / "tables" / "result.csv", formats.csv_text(report.result))
        _write(folder / "report.md", markdown(report))
        _write(folder / PAGE, html(report, study))
    return out / PAGE


def markdown(report: content.Report) -> str:
    """Returns the report as Markdown, with the figures beside it."""
    lines = [f"# {tables.escape(report.title)}"]
    lines += [tables.escape(text) for text in report.summary]
    if report.warnings:
        lines += ["## Missing and left out"]
        lines += ["\n".join(f"- {tables.escape(text)}" for text in report.warnings)]
    for section in report.sections:
        lines.append(f"## {section.title}")
        lines += [_markdown(part) for part in section.parts]
    return "\n\n".join(lines) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Text):
        return tables.escape(part.text)
    if isinstance(part, formats.Table):
        return formats.markdown(part)
    if isinstance(part, Picture | Saved):
        alt = tables.escape(part.alt).replace("]", "\\]")
        image = f"![{alt}](figures/{part.name}.png)"
        caption = tables.escape(part.caption) if isinstance(part, Picture) else ""
        return f"{image}\n\n{caption}".strip()
    if isinstance(part, Cards):
        lines = [f"{card.alt}: {', '.join(card.lines)}" for card in part.cards]
        listed = "\n".join(f"- {tables.escape(line)}" for line in lines)
        return f"### {tables.escape(part.title)}\n\n{listed or 'No mistakes.'}"
    if isinstance(part, Tree):
        return "\n".join(_branches(part.nodes, 0))
    assert isinstance(part, Details)
    return _folded(part)


def _folded(part: Details) -> str:
    """Returns where the folded tables and figures lie."""
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


def _check_out(out: Path) -> None:
    """Raises a UserError if a report may not take the place of `out`."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / PAGE).is_file()):
        raise UserError(
            f"--out={out}: is not empty and holds no earlier report. Give a new folder, "
            "such as one inside the run folder."
        )
    if (out / "results.json").exists():
        raise UserError(f"--out={out}: is a run folder. Give a folder inside it.")
