"""Damaged files are read right or refused: the small form of experiments/fuzz_dicom.py."""

import importlib
import shutil

import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from ct_files import write_ct, write_enhanced
from test_roi_formats import cut, phantom, write, write_slices

from twostage_jax.errors import UserError

pytest.importorskip("SimpleITK")
pytest.importorskip("pylibjpeg", reason="needs the extra 'dicom'")

__all__ = ["phantom"]


@pytest.fixture(scope="module")
def fuzzer():
    """The experiment, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "experiments")
        yield importlib.import_module("fuzz_dicom")


def test_damaged_slices_are_read_right_or_refused(fuzzer, tmp_path):
    stored = np.random.default_rng(0).integers(0, 2000, (3, 40, 40)).astype(np.int16)
    plain = write_ct(tmp_path / "plain", stored[0]).read_bytes()
    multi = write_enhanced(tmp_path / "multi", stored, [0, 1, 2]).read_bytes()
    originals = [plain, multi, *fuzzer.recoded(plain)]
    outcomes = fuzzer.fuzz(originals, count=180, seed=1)
    assert len(outcomes) == 180
    wrong = [o for o in outcomes if o.kind in ("other error", "crash", "too slow")]
    assert wrong == []
    assert max(o.peak_mib for o in outcomes) < 1000
    # The test would show nothing if all were refused, or none.
    kinds = [o.kind for o in outcomes]
    assert 45 < kinds.count("refused") < 170
    assert kinds.count("read as before") > 3


@pytest.mark.parametrize(
    "form", ["tiff", "npy", "nifti", "seg", "rtstruct", "csv", "medgift"]
)
def test_damaged_regions_are_read_or_refused(phantom, tmp_path, form):
    write_slices(phantom, tmp_path)
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


def test_absurd_claims_of_regions_take_no_memory(phantom, tmp_path):
    write_slices(phantom, tmp_path)
    regions = tmp_path / "regions"
    regions.mkdir()
    write("seg", phantom, regions)
    dataset = pydicom.dcmread(regions / "any")
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(regions / "any")
    with pytest.raises(UserError, match="65535 x 65535"):
        cut(tmp_path, phantom[3], regions)
    dataset.Rows = dataset.Columns = 96
    dataset.NumberOfFrames = 65535
    dataset.save_as(regions / "any")
    with pytest.raises(UserError, match="65535 frames"):
        cut(tmp_path, phantom[3], regions)
    shutil.rmtree(regions)
