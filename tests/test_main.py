"""The whole program on its smallest config, and its errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from basics import REPOSITORY, refusal, refused_at
from small_study import smoke

from twostage_jax import cli
from twostage_jax.errors import UserError
from twostage_jax.main import train

COMMAND = [
    sys.executable,
    "-m",
    "twostage_jax.main",
    "--config=configs/two_stage.py:smoke",
]


@pytest.fixture(scope="module")
def environment(user_cache):
    """A user's cache that is empty at first; programs as fast as users have them."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(user_cache),
        "JAX_PLATFORMS": "cpu",
        # Real networks take longer without optimisations than they take to compile.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }


def run(environment, *flags):
    return subprocess.run(
        [*COMMAND, *flags], cwd=REPOSITORY, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def heeding_ctrl_c():
    """Lets programs that a test starts heed SIGINT; in the background all ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
    """The workdir of a finished smoke run, and its printed output."""
    workdir = tmp_path_factory.mktemp("run")
    done = run(environment, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_results_hold_every_arm_and_its_predictions(finished):
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["schema"] == 1
    arms = [row["arm"] for row in results["rows"]]
    assert arms == ["scratch", "natural", "texture", "two_stage"]
    for row in results["rows"]:
        saved = np.load(workdir / row["predictions"])
        predicted = saved["probabilities"].argmax(1)
        accuracy = (predicted == saved["labels"]).mean()
        assert row["metrics"]["accuracy"] == pytest.approx(accuracy)
        assert len(saved["ids"]) == row["n_test"]
        assert row["arm"] in printed
    assert (workdir / "figures" / "confusion_matrices.png").stat().st_size > 1000


def test_shared_stages_are_trained_once_and_lineage_is_whole(finished):
    workdir, _ = finished
    folders = sorted(path.name for path in (workdir / "stages").iterdir())
    assert [name.split("-")[0] for name in folders] == (
        ["natural"] + ["target"] * 4 + ["texture"] * 2
    )
    for folder in (workdir / "stages").iterdir():
        lineage = json.loads((folder / "lineage.json").read_text())
        assert (folder / "transfer.json").exists() == (lineage["parent"] is not None)
        assert not (folder / "states").exists()


def test_second_run_trains_nothing_and_prints_the_same_table(finished, environment):
    workdir, first = finished
    again = run(environment, f"--workdir={workdir}")
    assert again.returncode == 0
    assert "7 stage runs, 7 done." in again.stdout
    assert first.split("\n\n", 1)[1] == again.stdout.split("\n\n", 1)[1]


def test_changed_target_setting_retrains_target_stages_only(
    finished, environment, tmp_path
):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    changed = run(
        environment, f"--workdir={workdir}", "--config.study.arms=('natural',)",
        "--config.study.baselines=()",
        "--config.stages.target.train.balance=False",  # Compiles nothing new.
    )  # fmt: skip
    assert "2 stage runs, 1 done." in changed.stdout


def test_sigterm_saves_and_the_next_run_ends_the_same(finished, environment, tmp_path):
    whole = finished[0]
    workdir = shutil.copytree(whole, tmp_path / "copy")
    first = json.loads((whole / "results.json").read_text())["rows"]
    # All but the last two stage runs, which are trained together.
    missing = [workdir / "stages" / row["stage_runs"][-1] for row in first[-2:]]
    for folder in (*missing, workdir / "rows", workdir / "predictions"):
        shutil.rmtree(folder)
    process = subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}"], cwd=REPOSITORY, env=environment,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not all(list(folder.glob("events/*")) for folder in missing):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Run the same command again" in errors
    assert run(environment, f"--workdir={workdir}").returncode == 0
    second = json.loads((workdir / "results.json").read_text())["rows"]
    assert first == second
    for row in first:
        one, other = (np.load(w / row["predictions"]) for w in (whole, workdir))
        assert one["probabilities"].tobytes() == other["probabilities"].tobytes()
        np.testing.assert_array_equal(one["ids"], other["ids"])


def test_signals_while_data_is_prepared_say_how_to_go_on(
    environment, tmp_path, heeding_ctrl_c
):
    for number in (signal.SIGTERM, signal.SIGINT):
        data = tmp_path / f"data{number}"
        with subprocess.Popen(
            [*COMMAND, f"--workdir={tmp_path / 'run'}", f"--data_dir={data}"],
            cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            deadline = time.monotonic() + 120
            while not data.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            try:
                # Workers end what they are at, and may just have been started.
                _, errors = process.communicate(timeout=300)
            finally:
                process.kill()
        assert process.returncode == 128 + number
        assert "Run the same command again" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("stages.target.optim.lerning_rate", 1, "Did you mean 'learning_rate'"),
        ("model.name", "caffenet_smal", "Did you mean 'caffenet_small'"),
        ("stages.target.data.source", "fantoms", "Did you mean 'phantoms'"),
        ("arms.natural", "natural > texture", "'target'"),
        ("stages.target.data.patients", 2, "4"),
        ("stages.target.transfer.rules", (("params/x", "copy"),), "params/x"),
        ("stages.texture.optim.freeze", ("conv9/.*",), "conv9/.*"),
    ],
)
def test_bad_setting_is_refused_before_any_training(
    finished, user_cache, monkeypatch, tmp_path, path, value, words
):
    monkeypatch.setattr(cli, "use_cores", lambda: None)
    data = user_cache / "twostage_jax" / "data"
    with pytest.raises(UserError) as refused:
        train(smoke(**{path: value}), workdir=str(tmp_path), data_dir=str(data))
    assert words in str(refused.value)
    assert not (tmp_path / "stages").exists()


def test_workdir_of_another_config_is_refused(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "use_cores", lambda: None)
    workdir, _ = finished
    with refused_at("--workdir"):
        train(smoke(name="another"), workdir=str(workdir), data_dir=str(tmp_path))


def test_folder_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "use_cores", lambda: None)
    (tmp_path / "file").write_text("in the way")

    def command(*, workdir: str) -> None:
        """Trains the smallest study."""
        train(smoke(), workdir=workdir, data_dir=str(tmp_path))

    line = refusal(
        lambda argv: cli.run(command, argv), f"--workdir={tmp_path}/file/run"
    )
    assert f"{tmp_path}/file" in line
