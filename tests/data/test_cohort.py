"""Flow of data and characteristics of patients, from DICOM files to the splits."""

import json

import numpy as np
import pytest
from ct_files import RAMP, SERIES, write_ct, write_patient

from twostage_jax.ct.dicom import read_headers
from twostage_jax.data import ct_patches
from twostage_jax.data.cohort import describe
from twostage_jax.data.splits import Splits
from twostage_jax.data.store import prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns a set of two marked patients and one without regions, and its splits."""
    folder = tmp_path_factory.mktemp("set")
    tags = {
        "Manufacturer": "SIEMENS",
        "ManufacturerModelName": "Sensation 64",
        "PatientSex": "F",
        "PatientAge": "061Y",
        "ConvolutionKernel": "B70f",
    }
    write_patient(folder / "files" / "x", patient="Smith^1", **tags)
    other = {"SeriesInstanceUID": f"{SERIES}.2"}
    write_patient(folder / "files" / "y", patient="Smith^2", uid=6, **other)
    write_ct(
        folder / "files" / "z.dcm", RAMP, uid=9, PatientID="Smith^3",
        SeriesInstanceUID=f"{SERIES}.9",
    )  # fmt: skip
    recipe = ct_patches.recipe(
        path=str(folder / "files"), size=4, stride=4, classes="a,b", per_class=1
    )
    made = prepare(recipe, folder / "data", workers=1, progress=False)
    first = made.groups == sorted(set(made.groups))[0]
    none = np.array([], int)
    return made, Splits(np.flatnonzero(first), none, np.flatnonzero(~first))


def counts(rows, *keys):
    return {tuple(row[key] for key in keys): row["count"] for row in rows}


def test_each_excluded_unit_has_a_reason_and_the_patches_add_up(prepared):
    made, splits = prepared
    flow = describe(made, splits)["flow"]
    total = {}
    for row in flow:
        key = row["level"], row["reason"]
        total[key] = total.get(key, 0) + row["count"]
    assert total["patients", ""] == 2
    assert total["patients", "no regions are drawn"] == 1
    assert total["patches", ""] == len(made)
    # Four patches per marked slice, two per class; one per class and patient is kept.
    (over,) = (n for (level, why), n in total.items() if level == "patches" and why)
    assert over + len(made) == 4 * total["slices", ""]
    by_split = {}
    for row in flow:
        if row["level"] == "patches" and not row["reason"]:
            by_split[row["split"]] = by_split.get(row["split"], 0) + row["count"]
    assert by_split == {"train": len(splits.train), "test": len(splits.test)}


def test_characteristics_are_those_of_the_patients_of_a_split(prepared):
    found = describe(*prepared)["acquisition"]
    assert found["all"]["patients"] == 2 and found["validation"]["patients"] == 0
    assert found["all"]["sex"] == {"F": 1, "": 1}
    assert found["all"]["age"]["median"] == 61
    assert found["all"]["scanner"]["SIEMENS Sensation 64"] == 1
    assert found["train"]["patients"] + found["test"]["patients"] == 2


def test_classes_count_patches_and_patients(prepared):
    classes = describe(*prepared)["classes"]
    assert classes["train"] == {"examples": [1, 1], "groups": [1, 1]}
    assert classes["validation"] == {"examples": [0, 0], "groups": [0, 0]}


def test_names_are_not_recorded(prepared):
    made, splits = prepared
    text = json.dumps([dict(made.facts), describe(made, splits)])
    assert "Smith" not in text and SERIES not in text
    assert not any(group in json.dumps(describe(made, splits)) for group in made.groups)


@pytest.mark.parametrize(
    ("written", "age"),
    [("045Y", 45), ("018M", 1.5), ("099Y", 90), ("", None), ("old", None)],
)
def test_age_is_in_years_up_to_the_largest_age(tmp_path, written, age):
    path = tmp_path / "1.dcm"
    write_ct(path, RAMP, PatientAge=written)
    assert read_headers(path)[0].age == age
