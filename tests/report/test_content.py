"""Tables and texts of the report, for studies of any shape."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from study_files import edit_lineages, parts_of, reported, tables_of, write_study

from twostage_jax.report import sections, stage_tables, study_table, write
from twostage_jax.report import tables as formats
from twostage_jax.report.artefacts import gather
from twostage_jax.report.write import html

TWO = {"scratch": 0.7, "two_stage": 0.85}


def column(table, title):
    place = [one.title for one in table.columns].index(title)
    return [row[place] for row in table.rows]


def size_curve_of(made):
    (curve,) = (p for p in parts_of(made) if getattr(p, "name", "") == "size_curve")
    return curve


def ticks(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def with_sizes(study, size):
    """Returns the study with other numbers of training patches."""
    records = {
        place: dataclasses.replace(record, n_train=size(place))
        for place, record in study.records.items()
    }
    return dataclasses.replace(study, records=records)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A study of folds, at two sizes that differ between folds."""
    folder = tmp_path_factory.mktemp("folded")
    write_study(folder, TWO, folds=2, fractions=(1.0, 0.5), seeds=(0, 1), patches=12)
    study = study_table.load([folder])
    return with_sizes(study, lambda p: int(p.fraction * (1500 + 200 * p.fold)))


@pytest.fixture(scope="module")
def of_folds(folded):
    return reported(folded)


def test_sizes_that_differ_are_means_with_their_range(of_folds):
    made, _ = of_folds
    tables = tables_of(made)
    assert column(tables["sizes"], "training patches (mean)") == [1600, 800]
    assert column(tables["sizes"], "range of patches") == ["1,500–1,700", "750–850"]
    assert "sizes are means" in tables["sizes"].note
    for name in ("matches", "size_differences"):
        assert tables[name].columns[0].title == "training patches (mean)"
    assert (
        "trained on 1,600 (1,500–1,700) target patches on average"
        in tables["scores"].caption
    )
    assert (
        "trained on 1,600 (1,500–1,700) target patches on average"
        in made.result.caption
    )
    curve = size_curve_of(made)
    assert "means over seeds and folds" in curve.caption
    (axes,) = curve.figure.axes
    assert axes.get_xlabel() == "target training patches (patients), mean"
    assert ticks(axes) == ["800\n(10)", "1,600\n(20)"]
    assert "the training patients, by whom the subsets are drawn" in curve.caption


@pytest.mark.parametrize("patients", [None, 12])
def test_sizes_name_patients_only_where_they_are_drawn_by_patient(tmp_path, patients):
    write_study(
        tmp_path, TWO, patients=patients, fractions=(1.0, 0.5), seeds=(0,), patches=6
    )
    study = study_table.load([tmp_path])
    if patients:
        study.config["study"]["draw"] = "patch"
    curve = size_curve_of(reported(study)[0])
    (axes,) = curve.figure.axes
    assert axes.get_xlabel() == "target training patches"
    assert ticks(axes) == ["800", "1,600"] and "Brackets" not in curve.caption


def test_sizes_that_are_alike_are_no_means(tmp_path):
    write_study(tmp_path, TWO, fractions=(1.0, 0.5), seeds=(0, 1), patches=12)
    made, _ = reported(tmp_path)
    assert column(tables_of(made)["sizes"], "training patches") == [1600, 800]
    assert "means over seeds and folds" not in write.markdown(made)


def test_the_size_axis_is_of_the_seeds_on_it(tmp_path):
    write_study(tmp_path, TWO, fractions=(1.0, 0.5), patches=12)
    study = study_table.load([tmp_path])
    study = with_sizes(study, lambda p: int(p.fraction * (1000 + 100 * p.seed)))
    gone = {p for p in study.records if (p.seed, p.fraction) == (2, 0.5)}
    kept = {place: one for place, one in study.records.items() if place not in gone}
    study = dataclasses.replace(study, records=kept, missing=tuple(gone))
    made, found = reported(study)
    assert [size.n for size in found.sizes] == [1100, 525]
    assert found.size_study.n == (525, 1050)
    assert "complete at every size are drawn: 0, 1." in write.markdown(made)


def test_the_method_says_which_training_patients_intervals_hold_for(of_folds, tmp_path):
    made, found = of_folds
    text = write.markdown(made)
    intervals = found.full.scores.intervals["balanced_accuracy"].values()
    assert all(one.these is None for one in intervals)
    assert sections.ONE_READING in text
    assert "within their fold" in tables_of(made)["scores"].note
    write_study(tmp_path, TWO, seeds=(0,), patches=6)
    text = write.markdown(reported(tmp_path)[0])
    assert sections.ONE_READING not in text and "within their fold" not in text


def test_the_method_says_that_predictions_are_averaged(tmp_path):
    flips = {"flip": "dihedral", "average": True}
    write_study(tmp_path, TWO, seeds=(0,), patches=6, augment=flips)
    text = write.markdown(reported(tmp_path)[0])
    assert sections.AVERAGED.format(count=8, flip="dihedral") in text


def test_folds_drawn_again_for_each_seed_give_two_readings(tmp_path):
    folder = write_study(tmp_path, TWO, folds=2, seeds=(0, 1), patches=12, redrawn=True)
    made, found = reported(folder)
    text = write.markdown(made)
    assert sections.TWO_READINGS.format(**sections.REJECTED) in text
    assert "in 2 folds, redrawn per seed, and" in made.summary[1]
    assert found.full.scores.groups == 16
    (one,) = found.full.scores.differences["balanced_accuracy"]
    assert one.low < one.these[0] < one.these[1] < one.high
    table = tables_of(made)["differences"]
    (wide,) = column(table, "for new training patients")
    (narrow,) = column(table, "for those of this study")
    assert (wide.low, wide.high) == (one.low, one.high)
    assert (narrow.low, narrow.high) == one.these


def test_what_the_method_quotes_is_in_the_page_of_coverage():
    page = Path(__file__).parents[2] / "experiments" / "coverage.md"
    name = "17 patients, 5 seeds, 2 folds, 0.5 logits"
    (line,) = re.findall(rf"^\| {name} \| balanced .*", page.read_text(), re.M)
    head = re.search(r"^\| scenario .*", page.read_text(), re.M)[0]
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["level"] == sections.REJECTED["new"]
    assert cells["level, these"] == sections.REJECTED["these"]


def test_copies_in_the_test_set_are_warned_of_once(tmp_path):
    folder = write_study(tmp_path, TWO, rich=True)
    line = "data set 'x': 2 of 480 test images are in"
    edit_lineages(folder, "target-*", lambda one: one["data"].update(copies=line))
    warnings = reported(folder)[0].warnings
    assert sum("2 of 480 test images" in line for line in warnings) == 1


def test_notes_on_the_files_of_a_data_set_are_given_once(tmp_path):
    folder = write_study(tmp_path, TWO, rich=True)
    lines = ["12 of 40 images are <i>turned</i>."]
    edit_lineages(folder, "target-*", lambda one: one["data"].update(notes=lines))
    made, _ = reported(folder)
    assert sum("12 of 40 images" in line for line in made.warnings) == 1
    assert r"\<i>turned" in write.markdown(made)


def test_patients_have_scores_that_no_label_selects(of_folds):
    made, found = of_folds
    tables = tables_of(made)
    assert "not a diagnosis" in tables["region_scores"].note
    paired = found.full.scores.paired
    right = paired.right[1].mean(0)  # Of two-stage, over seeds.
    patients = [right[paired.codes == p].mean() for p in range(16)]
    (_, of_arm) = column(tables["patient_scores"], "accuracy")
    assert of_arm.estimate == pytest.approx(np.mean(patients))
    assert of_arm.low < of_arm.estimate < of_arm.high
    said = paired.probabilities.argmax(-1)
    shares = tables["patient_shares"]
    for row in shares.rows:
        k = found.full.scores.class_names.index(row[0])
        a = paired.arms.index(row[1])
        true, predicted = (
            np.array([(x == k)[..., paired.codes == p].mean(-1) for p in range(16)])
            for x in (paired.labels, said[a])
        )
        assert row[2] == pytest.approx(true.mean())
        assert row[3].estimate == pytest.approx(
            np.abs(predicted - true[:, None]).mean()
        )
        assert -1 <= row[4].low < row[4].estimate < row[4].high


@pytest.mark.parametrize("arms", [{"natural": 0.8}, TWO])
@pytest.mark.parametrize("patients", [None, 12])
@pytest.mark.parametrize("folds", [0, 3])
def test_any_shape_of_study_has_a_whole_report(tmp_path, arms, patients, folds):
    write_study(
        tmp_path, arms, patients=patients, folds=folds, classes=("lung", "nodule"),
        seeds=(0, 1), fractions=(1.0, 0.5), patches=12,
    )  # fmt: skip
    study = study_table.load([tmp_path])
    made, found = reported(study)
    levels = {"scores", "per_class", "confusion", "calibration"}
    names = levels | {
        "sizes",
        "areas",
        "ensembles",
        "rows",
        "calibration_intercepts",
        "claim",
        "tripod_ai",
    }
    names |= {f"region_{name}" for name in levels} if patients else set()
    names |= {"patient_scores", "patient_shares"} if patients else set()
    pairs = {"differences", "size_differences", "matches"}
    pairs |= {"region_differences", "influence"} if patients else set()
    tables = tables_of(made)
    assert set(tables) == names | (pairs if len(arms) > 1 else set()) | {"settings"}
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
    page, text = html(made, study), write.markdown(made)
    latex = formats.latex(made.result, "tab:result")
    for words in (page, text, latex):
        assert not re.search(r"\bnan\b|\bNone\b", words)
    assert ("paired" in latex) == (len(arms) > 1)
    assert ("patients" in latex) == bool(patients)
    assert ("do not identify patients" in text) == (not patients)
    for arm in arms:
        interval = found.full.scores.intervals["balanced_accuracy"][arm]
        assert interval.low < interval.estimate < interval.high


def test_report_says_at_its_head_that_the_target_images_are_synthetic(tmp_path):
    folder = write_study(tmp_path / "run", TWO, rich=True)
    made, _ = reported(folder)
    assert not any("synthetic" in text for text in made.summary)

    def change(lineage):
        lineage["data"]["synthetic"] = lineage["stage"] != "texture"
        lineage["data"]["name"] = f"{lineage['stage']}_set"

    edit_lineages(folder, "*", change)
    made, _ = reported(folder)
    (text,) = [text for text in made.summary if "synthetic" in text]
    assert "target_set" in text and "natural_set" not in text


def test_report_says_what_a_patient_is_if_the_target_images_are_not_ct(tmp_path):
    folder = write_study(tmp_path / "run", TWO, rich=True)
    facts = {"kind": "texture", "name": "target_set"}
    edit_lineages(folder, "*", lambda one: one["data"].update(facts))
    made, _ = reported(folder)
    (text,) = [text for text in made.summary if "not CT" in text]
    assert "target_set" in text


def test_imported_stage_is_named_with_its_licence_and_the_layers_that_it_lacks(
    tmp_path,
):
    chances = {"scratch": 0.7, "natural": 0.8}
    write_study(tmp_path, chances, seeds=(0,), patches=6, rich=True)
    imported = {
        "file": "resnet18.npz",
        "sha256": "f" * 64,
        "names": {"params/conv1/kernel": "conv1.weight"},
        "licence": "bsd-3-clause",
        "missing": ["params/head/kernel", "params/head/bias", "params/a/norm1/scale"],
        "notes": [],
    }
    edit_lineages(tmp_path, "natural-*", lambda one: one.update(imported=imported))
    study = study_table.load([tmp_path])
    nodes = stage_tables.tree(study, gather(study).stages).nodes
    (text,) = (node.text for node in nodes if node.title == "natural")
    assert "resnet18.npz" in text and "bsd-3-clause" in text
    assert text.endswith("without head, a/norm1")
