"""The files of the report: contents, escaping, and the command."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from basics import REPOSITORY, refusal, refused_at
from PIL import Image
from study_files import ARMS, HOSTILE, read_results, write_results, write_study

from twostage_jax import io as atomic
from twostage_jax import report
from twostage_jax.report import figures, tables
from twostage_jax.report.tables import Column, Table
from twostage_jax.report.write import write_report
from twostage_jax.stats.intervals import Interval

# With what the first line of the table's file asks for.
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage[T1]{fontenc}
\begin{document}
\input{result}
\input{hostile}
\end{document}
"""


class Page(html.parser.HTMLParser):
    """Contents of a page for the tests."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(study_report):
    return Page((study_report / "report.html").read_text())


def rows(report, name):
    with (report / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_every_figure_is_there_as_png_and_pdf_with_text(study_report):
    names = {path.stem for path in (study_report / "figures").glob("*.png")}
    assert names == {path.stem for path in (study_report / "figures").glob("*.pdf")}
    assert names == {
        "size_curve", "confusion_matrices", "region_confusion_matrices",
        "calibration", "learning_curves", "by_patient",
        *(f"examples_{stage}" for stage in ("natural", "texture", "target")),
        *(f"mistakes_{arm}" for arm in ARMS),
        "explain_first_layer", "explain_saliency",
    }  # fmt: skip
    for path in (study_report / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert b"/CIDFontType2" in content and b"/Type3" not in content, path


def test_every_table_of_the_page_is_a_csv_file(study_report, page):
    names = {a["id"].removeprefix("table-") for a in page.all("table")}
    files = {path.stem for path in (study_report / "tables").glob("*.csv")}
    assert files == names | {"result"}
    for name in ("scores", "differences", "sizes", "per_class", "confusion", "tuning"):
        assert name in names


def test_numbers_of_the_tables_are_those_of_the_rows(study_report, study_run):
    header, *lines = rows(study_report, "scores")
    column = header.index("balanced accuracy")
    for line in lines:
        stored = [
            row["metrics"]["balanced_accuracy"]
            for row in read_results(study_run)["rows"]
            if row["arm"] == line[0] and row["fraction"] == 1
        ]
        assert float(line[column]) == pytest.approx(np.mean(stored), abs=1e-12)
        assert float(line[column + 1]) < float(line[column]) < float(line[column + 2])
    assert [line[0] for line in lines] == ["scratch", "natural", "texture", "two_stage"]


def test_tuning_says_what_was_tried_and_chosen(study_report):
    header, *lines = rows(study_report, "tuning")
    assert header == ["setting", "scratch", "natural", "texture", "two-stage"]
    assert lines == [
        ["optim.learning_rate = 0.001", "0", "0", "0", "0"],
        ["optim.learning_rate = 0.002", "4", "4", "4", "4"],
    ]
    assert len(rows(study_report, "tried")) == 1 + 2 * 16


def test_the_page_asks_for_nothing_and_forbids_it(study_report, page):
    policy = page.all("meta")[1]["content"]
    assert page.all("meta")[1]["http-equiv"] == "Content-Security-Policy"
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "url(" not in (study_report / "report.html").read_text()


def test_labels_stay_text(study_report, page):
    text = (study_report / "report.html").read_text()
    assert "<img src=x" not in text and "&lt;img src=x onerror" in text
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert HOSTILE[0] in "".join(page.text)
    for path in (study_report / "tables").glob("*.csv"):
        for line in csv.reader(io.StringIO(path.read_text())):
            assert not any(cell.startswith(("=", "@")) for cell in line), path
    assert r"'=HYPERLINK" in (study_report / "tables" / "per_class.csv").read_text()
    markdown = (study_report / "report.md").read_text()
    assert "\\<img src=x" in markdown and r"=HYPERLINK(a)\|b" in markdown
    assert not re.search(r"(?<!\\)<img", markdown)


def test_what_explain_found_is_on_the_page_and_in_the_markdown(
    study_run, study_report, page
):
    markdown = (study_report / "report.md").read_text()
    assert f"Edges, then texture: {HOSTILE[0]}." in "".join(page.text)
    assert f"Note: Arm {HOSTILE[1]}" in "".join(page.text)
    assert "Edges, then texture: \\<img src=x onerror" in markdown
    assert r"Note: Arm =HYPERLINK(a)\|b" in markdown
    for name in ("first_layer", "saliency"):
        link = f"figures/explain_{name}.png"
        assert f"[{link}]({link})" in markdown
        assert f"Figure: {name.replace('_', ' ')}" in {
            i["alt"] for i in page.all("img")
        }
        for suffix in (".png", ".pdf"):
            written = study_report / "figures" / f"explain_{name}{suffix}"
            made = study_run / "explain" / "figures" / f"{name}{suffix}"
            assert written.read_bytes() == made.read_bytes()


def test_the_page_can_be_read_without_eyes(page):
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    for before, after in zip(page.headings, page.headings[1:], strict=False):
        assert after <= before + 1
    for image in page.all("img"):
        assert len(image["alt"]) > 10
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    anchors = {a["href"][1:] for a in page.all("a")}
    assert anchors <= {a["id"] for _, a in page.tags if "id" in a}
    assert {"scores", "size", "classes", "calibration", "stages"} <= anchors


def luminance(colour):
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast_in_light_and_dark():
    path = REPOSITORY / "twostage_jax/report/templates/page.css"
    schemes = re.findall(r":root \{([^}]*--ground[^}]*)\}", path.read_text())[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        # Web Content Accessibility Guidelines 2.2, 1.4.3.
        for ink, ground in (
            ("ink", "ground"), ("ink", "band"), ("ink", "warn"), ("soft", "ground"),
            ("soft", "band"), ("link", "ground"),
        ):  # fmt: skip
            low, high = sorted(luminance(colours[name]) for name in (ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_mistakes_show_what_was_predicted_and_their_pixels(study_run, page):
    with np.load(study_run / "examples" / "mistakes.npz") as saved:
        first = np.flatnonzero(saved["arm"] == "scratch")
        probabilities = saved["probabilities"][first]
        labels, groups = saved["labels"][first], saved["groups"][first]
        true = probabilities[np.arange(len(first)), labels]
        worst = (true - probabilities.max(1)).argmin()
    text = "".join(page.text)
    predicted = probabilities[worst].argmax()
    expected = (
        f"true: {HOSTILE[labels[worst]]} ({true[worst]:.2f})"
        f"predicted: {HOSTILE[predicted]} ({probabilities[worst].max():.2f})"
        f"patient {groups[worst]}"
    )
    assert expected in text.replace("\n", "")


def test_labelled_images_show_the_pixels_they_were_given():
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    lines = [[f"true: {i}", HOSTILE[2]] for i in range(7)]
    figure = figures.labelled(images, lines, "title")
    assert len(figure.axes) == 7
    for i in range(7):
        shown = figure.axes[i].get_images()[0].get_array()
        np.testing.assert_array_equal(shown, images[i, ..., 0])
        assert figure.texts[1 + i].get_text().startswith(f"true: {i}\n")


def test_svg_figures_hold_no_script_and_no_link(study_report):
    curves = {"scratch": [Interval(0.5, 0.4, 0.6)] * 2}
    svg = figures.svg(figures.size_curve([10, 20], curves))
    assert b"<script" not in svg and b"<text" not in svg and b"<svg" in svg
    with Image.open(study_report / "figures" / "size_curve.png") as image:
        assert image.size == (700, 520)


def test_a_new_report_replaces_the_old_one_whole(study_run, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.html").write_text("old")
    (out / "stale.csv").write_text("old")
    small = write_study(
        tmp_path / "small", {"scratch": 0.7, "two_stage": 0.8}, patches=6, seeds=(0,)
    )
    write_report([small], out)
    assert not (out / "stale.csv").exists()
    # Training removes the page alone when results change.
    (out / "report.html").unlink()
    write_report([small], out)
    assert "made study" in (out / "report.html").read_text()
    hidden = [path.name for path in tmp_path.iterdir() if path.name[0] == "."]
    assert hidden == [".report.lock"]
    # Nothing is touched if the new one cannot be made.
    before = (out / "report.html").read_text()
    lost = small / "predictions" / "scratch-seed0-fraction1-fold0.npz"
    lost.unlink()
    with refused_at(lost):
        write_report([small], out)
    assert (out / "report.html").read_text() == before


def test_reports_of_one_folder_are_written_one_after_the_other(tmp_path):
    run, out = tmp_path / "run", tmp_path / "run" / "report"
    found = read_results(
        write_study(run, {"scratch": 0.7}, patches=6, seeds=(0, 1), patients=6)
    )
    write_results(run, found["config"], found["rows"][:1])
    with futures.ThreadPoolExecutor(2) as pool:
        with atomic.locked(run / ".report.lock", "it"):
            waiting = [pool.submit(write_report, [run], out) for _ in range(2)]
            done, _ = futures.wait(waiting, timeout=0.5)
            assert not done and not out.exists()
            # Whoever waited tells of the rows that came meanwhile.
            write_results(run, found["config"], found["rows"])
        assert [one.result() for one in waiting] == [out / "report.html"] * 2
    assert "2 seeds" in (out / "report.md").read_text()
    assert sorted(path.name for path in run.glob(".*")) == [".report.lock"]


def test_folders_that_hold_something_else_are_left_alone(study_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with refused_at("--out"):
        write_report([study_run], tmp_path)
    with refused_at("--out"):
        write_report([study_run], study_run)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def command(*arguments):
    script = (
        "import sys; from twostage_jax.report.__main__ import main\n"
        "sys.argv = ['report', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('jax' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_joins_folders_and_needs_no_jax(tmp_path):
    chances = {"scratch": 0.7, "two_stage": 0.8}
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write_study(tmp_path / name, chances, seeds=(seed,), patches=6)
    folders = [tmp_path / name for name in "abc"]
    done = command(f"--run={folders[0]}", *folders[1:], f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / "report.html"), "False"]
    assert "3 seeds" in (tmp_path / "out" / "report.md").read_text()


def test_the_command_names_what_is_wrong_in_one_line(tmp_path):
    missing, out = tmp_path / "none", tmp_path / "out"
    line = refusal(report.main, f"--run={missing}", f"--out={out}")
    assert line.startswith("error: ") and str(missing) in line
    assert not (tmp_path / "out").exists()


def test_runs_without_extras_are_reported_and_say_what_is_left_out(tmp_path):
    run = write_study(tmp_path / "a", {"scratch": 0.7}, patches=6, seeds=(0,))
    settings = read_results(run)["config"]
    rows = [
        {k: v for k, v in row.items() if k not in ("stage_runs", "groups")}
        for row in read_results(run)["rows"]
    ]
    write_results(run, settings, rows)
    text = write_report([run], tmp_path / "out").read_text()
    for what in ("Example patches are", "Worst mistakes are", "Learning curve:"):
        assert f"{what} skipped" in text
    shutil.rmtree(tmp_path / "out")


def test_transfer_reports_are_written_once_for_runs_that_did_the_same(study_report):
    names = sorted(path.stem for path in (study_report / "tables").glob("transfer_*"))
    assert len(names) == 4
    header, *lines = rows(study_report, names[0])
    assert lines[1][:3] == ["params/head/kernel", "init", "params/head/.*"]
    assert json.loads(lines[0][header.index("norm after")]) == 9.7


def test_calibration_tables_have_a_slope_per_arm_and_an_intercept_per_class(
    study_report,
):
    with (study_report / "tables" / "calibration.csv").open() as file:
        slopes = {row["arm"]: float(row["slope"]) for row in csv.DictReader(file)}
    assert set(slopes) == {"scratch", "natural", "texture", "two_stage"}
    with (study_report / "tables" / "calibration_intercepts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * len(slopes)


def test_latex_table_is_whole_and_escaped(study_report):
    text = (study_report / "table.tex").read_text()
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:result}"):
        assert text.count(part) == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(ARMS)
    assert {line.count("&") for line in lines} == {4}
    assert r"Balanced accuracy (\%)" in text
    assert tables.latex_text(HOSTILE[2]) == (
        r"50 \% \& \$x\_1\$ \textbackslash{}input\{y\}"
    )


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed"
)
def test_latex_sets_the_table_whatever_its_text(study_report, tmp_path):
    shutil.copy(study_report / "table.tex", tmp_path / "result.tex")
    text = " ".join([*HOSTILE, *tables.LATEX])
    table = Table("t", text, [Column(text), Column("n", "count")], [[text, 1]], text)
    (tmp_path / "hostile.tex").write_text(tables.latex(table, "tab:hostile"))
    (tmp_path / "all.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error",
         "all"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "all.pdf").is_file()
    assert "Missing character" not in (tmp_path / "all.log").read_text("latin-1")
