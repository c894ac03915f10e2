"""The command `predict`, run like a user."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from basics import REPOSITORY, refusal, refused_at
from chest import WINDOW, write_chest, write_run

from twostage_jax import predict
from twostage_jax.maps.classify import Classifier, How
from twostage_jax.maps.run import map_folder
from twostage_jax.study import artifacts

COMMAND = """
import sys
sys.path[:0] = ["tests/helpers", "tests/maps"]
from chest import Brightness
from twostage_jax import models
models.MODELS["brightness"] = Brightness
from twostage_jax import predict
predict.main()
"""


def run_command(tmp_path, *flags, devices=1):
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *flags], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_command_gives_the_same_maps_on_three_devices(tmp_path, brightness):
    run = write_run(tmp_path / "study")
    write_chest(tmp_path / "dicom", 2)
    flags = [
        f"--run={tmp_path / 'study'}",
        f"--dicom={tmp_path / 'dicom'}",
        "--stride=3",
    ]
    done = run_command(tmp_path, *flags, f"--out={tmp_path / 'three'}", devices=3)
    assert done.returncode == 0, done.stderr
    assert "Research use only, not for diagnosis" in done.stdout
    assert (
        "model 0123456789ab (two_stage), trained on dicom feedfeedfeed" in done.stdout
    )
    assert "1 of 1 series mapped" in done.stdout
    how = How(stride=3, window=(-600.0, 1500.0), spacing=None)
    classifier = Classifier(artifacts.find(run), how.window)
    map_folder(tmp_path / "dicom", tmp_path / "one", classifier, how)
    (three,), (one,) = (
        list((tmp_path / name).glob("patient-*/probabilities.npz"))
        for name in ("three", "one")
    )
    with np.load(three) as left, np.load(one) as right:
        for name in ("labels", "probabilities_255", "lungs", "affine"):
            np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("stride", [0, WINDOW + 1])
def test_stride_that_leaves_gaps_between_windows_is_refused(
    tmp_path, brightness, stride
):
    write_run(tmp_path / "study")
    write_chest(tmp_path / "dicom", 1)
    folders = {"run": tmp_path / "study", "dicom": tmp_path / "dicom"}
    folders = {name: str(path) for name, path in folders.items()}
    with refused_at("--stride"):
        predict.predict(**folders, out=str(tmp_path / "out"), stride=stride)
    predict.predict(**folders, out=str(tmp_path / "out"), stride=WINDOW)


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (["--out=y"], "--run"),
        (["--run=RUN", "--dicom=x", "--out=y", "--stride=3"], "x "),
    ],
)
def test_mistake_is_one_line(tmp_path, brightness, flags, where):
    write_run(tmp_path / "study")
    flags = [flag.replace("RUN", str(tmp_path / "study")) for flag in flags]
    assert where in refusal(predict.main, *flags)
    assert not Path(REPOSITORY, "y").exists()
