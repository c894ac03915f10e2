"""Damaged files are read correctly or refused: a small experiments/fuzz_dicom.py."""

import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from basics import experiment, refused_at
from chest import STUDY
from ct_files import write_ct, write_enhanced

from twostage_jax.ct.dicom import read_slice
from twostage_jax.errors import UserError

pytest.importorskip("SimpleITK")
pytest.importorskip("pylibjpeg", reason="needs the extra 'dicom'")
pytest.importorskip("highdicom")
from phantom_regions import cut, phantom, write, write_slices

__all__ = ["phantom"]


@pytest.fixture(scope="module")
def fuzzer():
    """Returns the experiment as a module."""
    return experiment("fuzz_dicom")


def test_damaged_slices_are_read_right_or_refused(fuzzer, tmp_path):
    stored = np.random.default_rng(0).integers(0, 2000, (3, 40, 40)).astype(np.int16)
    tags = {**STUDY, "SliceThickness": 1}
    plain = write_ct(tmp_path / "plain", stored[0], **tags).read_bytes()
    multi = write_enhanced(tmp_path / "multi", stored, [0, 1, 2], **tags).read_bytes()
    originals = [plain, multi, *fuzzer.recoded(plain)]
    outcomes = fuzzer.fuzz(originals, count=180, seed=1)
    assert len(outcomes) == 180
    assert [o for o in outcomes if o.kind not in fuzzer.GOOD] == []
    assert max(o.peak_mib for o in outcomes) < 1000
    # The test would be meaningless if all were refused, or none.
    kinds = [o.kind for o in outcomes]
    assert 45 < kinds.count("refused") < 170
    assert kinds.count("read as before") > 3
    read = [o for o in outcomes if o.kind != "refused"]
    assert sum(o.later == "" for o in read) > len(read) / 2


@pytest.fixture
def compare(fuzzer, tmp_path):
    """Returns a function that compares a slice with SimpleITK, as the fuzz test does."""

    def compare(stored, change=None, **tags):
        path = write_ct(tmp_path / "a", stored, **tags)
        header, hu = read_slice(path)
        hu = hu[None].copy()
        before = {"hu": hu - 1, "geometry": fuzzer.geometry([header])}
        if change:
            header = change(header, hu) or header
        return fuzzer.compared([header], hu, path, before)

    return compare


TURNED = (0, 1, 0, 1, 0, 0)
PADDED = np.array([[-2000, 24, 24], [24, 1064, 30]], np.int16)


@pytest.mark.parametrize("tags", [{}, {"PixelPaddingValue": 24}])
def test_fuzz_accepts_declared_padding(compare, tags):
    assert compare(PADDED, **tags)["kind"] == "read as SimpleITK does"


def padding_of_its_own(header, hu):
    hu[0, 1, 1] = -1000


def other_value(header, hu):
    hu[0, 1, 2] += 1


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (padding_of_its_own, "16.6667% of the pixels differ"),
        (other_value, "16.6667% of the pixels differ"),
        (lambda header, hu: replace(header, spacing=(0.6, 0.5)), "spacing"),
        (lambda header, hu: replace(header, position=(0, 0, 1)), "position"),
        (lambda header, hu: replace(header, orientation=TURNED), "orientation"),
    ],
)
def test_fuzz_finds_differences_to_simpleitk(compare, change, detail):
    answer = compare(PADDED, change, PixelSpacing=[0.5, 0.6])
    assert answer["kind"] == "read otherwise"
    assert detail in answer["detail"]


def test_fuzz_finds_failures_after_reading(fuzzer, tmp_path, monkeypatch):
    header, hu = read_slice(write_ct(tmp_path / "a", PADDED))

    def failing(*_):
        raise MemoryError

    monkeypatch.setattr(fuzzer, "lung_mask", failing)
    assert fuzzer.use([header], hu[None], tmp_path / "seg")["kind"] == "other error"


@pytest.mark.parametrize(
    "form", ["tiff", "npy", "nifti", "seg", "rtstruct", "csv", "medgift"]
)
def test_damaged_regions_are_read_or_refused(phantom, tmp_path, form):
    write_slices(phantom, tmp_path, from_feet=form in ("tiff", "npy"))
    regions = tmp_path / "regions"
    regions.mkdir()
    write(form, phantom, regions)
    (path,) = regions.iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(6):
        broken = bytearray(whole)
        if number % 3:
            for at in rng.integers(0, min(len(whole), 3000), 4):
                broken[at] = rng.integers(256)
        else:
            broken = broken[: rng.integers(1, len(whole))]
        path.write_bytes(broken)
        try:
            cut(tmp_path, phantom[3], regions)
        except UserError:
            refused += 1
    assert refused >= 1


def test_implausible_sizes_of_segmentations_are_refused(phantom, tmp_path):
    write_slices(phantom, tmp_path)
    regions = tmp_path / "regions"
    regions.mkdir()
    write("seg", phantom, regions)
    dataset = pydicom.dcmread(regions / "any")
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(regions / "any")
    with refused_at(regions / "any"):
        cut(tmp_path, phantom[3], regions)
    dataset.Rows = dataset.Columns = 96
    dataset.NumberOfFrames = 65535
    dataset.save_as(regions / "any")
    with refused_at(regions / "any"):
        cut(tmp_path, phantom[3], regions)
    shutil.rmtree(regions)
