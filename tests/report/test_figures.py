"""Figures and tables of the report."""

import re
import zlib

import numpy as np
import pytest
from matplotlib import cbook
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from study_files import edit_lineages, write_study

from twostage_jax.report import figures, study_table
from twostage_jax.report.artefacts import gather
from twostage_jax.report.run import results_table
from twostage_jax.stats import metrics
from twostage_jax.stats.intervals import Interval

ARMS = ("scratch", "natural", "texture", "two_stage")
NASTY = "$\\frac{1}{0}$ <b>&amp;</b> 100 % \\alpha_{"


def history(level):
    return [
        {
            "step": 10 * i,
            "loss": 1 / i,
            "validation_loss": 1.1 / i,
            "validation_balanced_accuracy": level * (1 - 0.5 / i),
        }
        for i in range(1, 6)
    ]


def curves():
    return {
        "natural": {"run0": ("", history(0.7))},
        "target": {
            f"{arm}{seed}": (arm, history(0.8 + 0.02 * seed))
            for arm in ARMS
            for seed in range(2)
        },
    }


def size_curve(low=0.7, high=0.9, arms=ARMS, **more):
    curves = {arm: [Interval(0.8, low, high)] * 3 for arm in arms}
    return figures.size_curve([100, 200, 2000], curves, **more)


def reliability():
    ones = np.linspace(0.01, 0.99, 50)
    pairs = np.stack([1 - ones, ones], 1)
    return {arm: metrics.reliability((ones > 0.4).astype(int), pairs) for arm in ARMS}


def examples(channels=1):
    images = np.random.default_rng(0).integers(256, size=(12, 8, 8, channels))
    return images.astype(np.uint8), np.repeat(np.arange(3), 4)


def drawn():
    names = [NASTY, "healthy", "ground-glass opacity and more"]
    matrices = {arm: np.eye(3, dtype=int) * 1234 + 5 for arm in ARMS}
    return {
        "curves": figures.learning_curves(curves()),
        "matrices": figures.confusion_matrices(matrices, names),
        "many": figures.confusion_matrices(
            {arm: np.eye(15, dtype=int) + 1 for arm in ARMS},
            [f"class {i}" for i in range(15)],
        ),
        "montage": figures.montage(*examples(), names, f"target: {NASTY}"),
        "sizes": size_curve(),
        "sizes of patients": size_curve(
            unit="x" * 60, patients={100: 2, 200: 3.5, 2000: 1234}
        ),
        "calibration": figures.calibration(reliability()),
        "labelled": figures.labelled(
            examples()[0], [[f"true: {NASTY} (0.12)", "predicted: b"]] * 12, NASTY
        ),
    }


def texts(figure):
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]


def test_figures_fit_a_page_and_can_be_read():
    for name, figure in drawn().items():
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        assert width <= figures.PAGE + 1e-6 and height <= 9.5, name
        for text in texts(figure):
            assert text.get_fontsize() >= 5, (name, text.get_text())
        box = figure.get_tightbbox()
        assert box.x0 >= -0.03 and box.y0 >= -0.03, name
        assert box.x1 <= width + 0.03 and box.y1 <= height + 0.03, name


def test_text_from_labels_is_never_mathematics():
    for name, figure in drawn().items():
        figure.draw_without_rendering()
        for text in texts(figure):
            # What matplotlib does before it draws: \$ becomes $, no markup is read.
            assert not cbook.is_math_text(text.get_text()), name
    assert figures.plain("a\n $b$ \x07") == r"a \$b\$"
    assert figures.plain("x" * 50) == "x" * 39 + "…"


def test_an_arm_has_one_colour_in_every_figure():
    figure = size_curve(arms=["two_stage"])
    (line,) = figure.axes[0].get_lines()
    assert to_hex(line.get_color()) == figures.ARM_COLOURS["two_stage"].lower()
    figure = figures.learning_curves({"target": {"x": ("two_stage", history(0.9))}})
    assert {to_hex(line.get_color()) for line in figure.axes[0].get_lines()} == {
        figures.ARM_COLOURS["two_stage"].lower()
    }
    figure = figures.confusion_matrices({"two_stage": np.eye(2)}, "ab")
    assert figure.axes[0].title.get_color() == figures.ARM_COLOURS["two_stage"]


def test_colours_of_other_arms_depend_on_their_name_only():
    colour = figures.arm_style("my arm")["color"]
    assert colour not in figures.ARM_COLOURS.values()
    assert colour == figures.OTHER_COLOURS[zlib.crc32(b"my arm") % 3]


def test_colours_differ_in_lightness_or_hue_for_dichromats():
    # Vienot et al. 1999: linear RGB as seen without the red, and the green, receptor.
    protan = np.array(
        [[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.004, -0.004, 1.0]]
    )
    deutan = np.array(
        [[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]]
    )
    colours = [
        [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        for colour in figures.ARM_COLOURS.values()
    ]
    for seen in (np.eye(3), protan, deutan):
        visible = np.clip(np.array(colours) ** 2.2 @ seen.T, 0, 1) ** (1 / 2.2)
        gaps = np.linalg.norm(visible[:, None] - visible[None], axis=-1)
        assert gaps[~np.eye(len(colours), dtype=bool)].min() > 0.15


def test_save_writes_a_png_and_a_pdf_with_text(tmp_path):
    figure = size_curve()
    written = figures.save(figure, tmp_path / "new" / "size.curve")
    assert [path.name for path in written] == ["size.curve.png", "size.curve.pdf"]
    with Image.open(written[0]) as image:
        assert image.width == pytest.approx(3.5 * 200, abs=1)
    content = written[1].read_bytes()
    assert b"/CIDFontType2" in content and b"/Type3" not in content
    again = figures.save(size_curve(), tmp_path / "again")
    assert again[1].read_bytes() == content


def test_confusion_matrix_shows_shares_and_counts_and_no_share_of_nothing():
    matrix = np.array([[30, 10], [0, 0]])
    figure = figures.confusion_matrices({"scratch": matrix}, ["a", "b"])
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["0.75", "30", "0.25", "10", "–", "–"]


@pytest.mark.parametrize("channels", [1, 3])
def test_montage_shows_the_pixels_it_was_given(channels):
    images, labels = examples(channels)
    figure = figures.montage(images, labels, ["a", "b", "c"], "title")
    assert len(figure.axes) == 3
    shown = figure.axes[1].get_images()[0].get_array()
    expected = images[4:6].squeeze()
    assert shown.shape[:2] == (10, 40)
    np.testing.assert_array_equal(shown[1:9, 1:9], expected[0])
    np.testing.assert_array_equal(shown[1:9, 11:19], expected[1])


def test_calibration_leaves_out_bins_of_a_handful():
    confidence = np.array([0.1, 0.5, 0.9])
    bins = (confidence, confidence, np.array([1, 99, 100]))
    figure = figures.calibration({"scratch": bins})
    drawn = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert [0.5, 0.9] in [list(line.get_xdata()) for line in drawn]


def test_montage_leaves_out_classes_without_images():
    images, labels = examples()
    keep = labels != 1
    figure = figures.montage(images[keep], labels[keep], ["a", "b", "c"], "title")
    assert [text.get_text() for text in figure.texts] == ["title", "a", "c"]


def test_size_curve_without_intervals_draws_no_band():
    figure = size_curve(low=None, high=None)
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["100", "200", "2,000"]


def test_calibration_names_the_error_of_scores():
    ones = np.linspace(0.01, 0.99, 50)
    pairs = np.stack([1 - ones, ones], 1)
    expected = metrics.scores((ones > 0.4).astype(int), pairs)["ece"]
    figure = figures.calibration(reliability())
    label = figure.legends[0].get_texts()[0].get_text()
    assert label == f"scratch (ECE {expected:.3f})"


def row(arm, seed=0, fraction=1.0, fold=0, score=0.5):
    return {
        "arm": arm,
        "seed": seed,
        "fraction": fraction,
        "fold": fold,
        "n_train": [1200],
        "n_test": 10,
        "metrics": {"accuracy": score, "balanced_accuracy": score, "macro_f1": None},
        "lacks": [],
    }


def cells(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_table_has_mean_and_deviation_over_seeds():
    rows = [row("scratch", seed, score=s) for seed, s in enumerate((0.5, 0.6, 0.7))]
    header, _, line = cells(results_table(rows))
    assert header[-1] == "seeds"
    assert line == ["scratch", "1,200", "60.0 ± 10.0", "60.0 ± 10.0", "–", "3"]


def test_table_shows_the_range_of_training_sizes():
    rows = [row("scratch") | {"n_train": [1180, 1200]}, row("scratch", 1)]
    assert cells(results_table(rows))[2][1] == "1,180–1,200"


def test_missing_rows_are_named_and_not_averaged_over():
    rows = [row(arm, seed) for arm in ("scratch", "two_stage") for seed in (0, 1)]
    table = results_table(rows[:-1])
    assert [line[-1] for line in cells(table)[2:]] == ["2", "1"]
    assert "Missing: two_stage (fraction 1, seed 1)." in table
    assert "Missing" not in results_table(rows)
    rows[-1] |= {"lacks": [1, 3], "metrics": {}}
    table = results_table(rows)
    assert [line[-1] for line in cells(table)[2:]] == ["2", "1"]
    assert (
        "Missing: two_stage (fraction 1, seed 1, fold 1), "
        "two_stage (fraction 1, seed 1, fold 3)." in table
    )


def test_table_is_aligned_and_text_is_escaped():
    table = results_table([row("a|b<script>"), row("*c*")])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert re.fullmatch(r"\| -+ \|( -+: \|)+", lines[1])
    assert r"a\|b\<script>" in table and r"\*c\*" in table


def test_imported_stage_has_no_panel_of_learning_curves(tmp_path):
    chances = {"scratch": 0.7, "natural": 0.8}
    write_study(tmp_path, chances, seeds=(0,), patches=6, rich=True)
    edit_lineages(tmp_path, "natural-*", lambda one: one.update(history=[]))
    study = study_table.load([tmp_path])
    picture = figures.curves_picture(study, gather(study).stages, 1.0)
    titles = {axes.get_title() for axes in picture.figure.axes} - {""}
    assert titles == {"target"}
