"""The section on the data: flow, classes by split, characteristics, statements."""

import pytest
from study_files import (
    CLASSES,
    edit_lineages,
    read_results,
    write_results,
    write_study,
)

from twostage_jax.report import cohort, study_table
from twostage_jax.report.artefacts import gather
from twostage_jax.report.parts import Text, walk
from twostage_jax.report.tables import Table

HOSTILE = "<script>alert(1)</script>"


def described(patients=(6, 2, 4)):
    """A cohort as lineages record it."""
    splits = dict(zip(("train", "validation", "test"), patients, strict=True))
    acquisition = {
        "patients": sum(patients),
        "series": 12,
        "sex": {"F": 5, "": 7},
        "age": {"count": 5, "median": 61.0, "low": 50.0, "high": 70.0},
        "scanner": {HOSTILE: 12},
        "kernel": {"B70f": 12},
        "thickness_mm": {"1": 12},
        "pixel_mm": None,
    }
    flow = [("files", "not a CT", "", "", 3), ("patients", "no regions", "", "", 2)]
    flow += [("patients", "", "", split, n) for split, n in splits.items()]
    flow.append(("slices", "no regions", "", "", 5))
    for name in CLASSES:
        flow += [("patches", "", name, split, 10 * n) for split, n in splits.items()]
        flow.append(("patches", "over the cap", name, "train", 7))
    keys = ("level", "reason", "class", "split", "count")
    return {
        "classes": {
            split: {"examples": [10 * n] * 3, "groups": [n] * 3}
            for split, n in splits.items()
        },
        "flow": [dict(zip(keys, row, strict=True)) for row in flow],
        "acquisition": {name: acquisition for name in ("all", *splits)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    chances = {"scratch": 0.7, "two_stage": 0.8}
    write_study(folder, chances, seeds=(0,), patches=6, rich=True)
    return folder


def record(folder, found):
    """Writes a cohort into the lineages of the target."""
    edit_lineages(folder, "target-*", lambda one: one["data"].update(cohort=found))


def section(folder):
    study = study_table.load([folder])
    parts = walk(cohort.section(study, gather(study)))
    tables = {one.name: one for one in parts if isinstance(one, Table)}
    return [one.text for one in parts if isinstance(one, Text)], tables, parts


def test_older_runs_have_not_recorded_it(folder):
    record(folder, None)
    texts, tables, _ = section(folder)
    assert cohort.NOT_RECORDED in texts and not tables


def test_tables_hold_what_was_recorded(folder):
    record(folder, described())
    _, tables, parts = section(folder)
    (row, *_) = tables["classes_by_split"].rows
    assert row == ["healthy", "60", "6", "20", "2", "40", "4"]
    flow = {tuple(row[:3]): row[3:] for row in tables["flow"].rows}
    assert flow["patients", "", "no regions"] == [2, 0, 0, 0, 2]
    assert flow["patches", "nodular", "over the cap"] == [7, 7, 0, 0, 0]
    assert ["sex", "F"] in [row[:2] for row in tables["characteristics"].rows]
    pictures = [part for part in parts if hasattr(part, "figure")]
    (flow,) = (one for one in pictures if one.name == "flow")
    # Patients without series, as of pictures: no gap where their number would be.
    assert ", ," not in flow.alt


def test_images_that_are_not_dicom_have_no_scanner(folder):
    record(folder, {**described(), "acquisition": None, "flow": None})
    texts, tables, _ = section(folder)
    assert cohort.NO_ACQUISITION in texts
    assert set(tables) == {"classes_by_split"}


def test_statements_are_those_of_the_settings_and_missing_ones_are_named(folder):
    results = read_results(folder)
    results["config"]["report"] = {"ethics": HOSTILE, "funding": " "}
    write_results(folder, results.pop("config"), results.pop("rows"))
    texts, *_ = section(folder)
    assert f"Ethics: {HOSTILE}" in texts
    for name in ("reference_standard", "funding"):
        assert any(f"config.report.{name}" in text for text in texts)
