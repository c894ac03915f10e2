"""Search for finished stage runs in a folder, and reading them."""

import json

import pytest
from basics import refused_at
from chest import write_run

from twostage_jax.study import artifacts


def add_row(workdir, arm, folder, **changes):
    row = {
        "arm": arm,
        "seed": 0,
        "fraction": 1.0,
        "fold": 0,
        "stage_runs": [folder.name],
    }
    name = "-".join([arm, *(f"{k}{v}" for k, v in changes.items())])
    (workdir / "rows" / f"{name}.json").write_text(json.dumps({**row, **changes}))


def test_study_gives_the_two_stage_arm_and_stage_folder_the_same(tmp_path):
    folder = write_run(tmp_path)
    scratch = tmp_path / "stages" / "target-scratch"
    scratch.mkdir()
    (scratch / "lineage.json").write_bytes((folder / "lineage.json").read_bytes())
    add_row(tmp_path, "scratch", scratch)
    of_study, of_stage = artifacts.find(tmp_path), artifacts.find(folder)
    assert of_study == of_stage
    assert of_study.arm == "two_stage" and of_study.hash.startswith("0123456789ab")
    assert of_study.window == (-600, 1500)
    assert of_study.class_names == ("normal", "ground_glass")
    assert artifacts.find(tmp_path, "scratch").folder == scratch


def test_run_with_all_data_and_the_first_seed_is_taken(tmp_path):
    folder = write_run(tmp_path)
    (tmp_path / "rows" / "two_stage.json").unlink()
    for fraction, seed in [(0.1, 0), (1.0, 1), (1.0, 0)]:
        other = tmp_path / "stages" / f"target-{fraction}-{seed}"
        other.mkdir()
        (other / "lineage.json").write_bytes((folder / "lineage.json").read_bytes())
        add_row(tmp_path, "two_stage", other, fraction=fraction, seed=seed)
    assert artifacts.find(tmp_path).folder.name == "target-1.0-0"


def test_seed_fraction_and_fold_can_be_chosen(tmp_path):
    folder = write_run(tmp_path)
    lineage = (folder / "lineage.json").read_bytes()
    for place in ({"seed": 1}, {"fraction": 0.5}, {"fold": 1}, {"seed": 1, "fold": 1}):
        other = tmp_path / "stages" / "-".join(map(str, ["target", *place]))
        other.mkdir()
        (other / "lineage.json").write_bytes(lineage)
        add_row(tmp_path, "two_stage", other, **place)
        assert artifacts.find(tmp_path, **place).folder == other
    assert artifacts.find(tmp_path).folder == folder
    for place in ({"seed": 2}, {"fraction": 0.1}, {"fold": 5}):
        with refused_at(f"--{next(iter(place))}"):
            artifacts.find(tmp_path, **place)
    with refused_at("--seed"):
        artifacts.find(folder, seed=0)


def test_arm_that_cannot_be_chosen_is_asked_for(tmp_path):
    folder = write_run(tmp_path)
    (tmp_path / "rows" / "two_stage.json").unlink()
    add_row(tmp_path, "scratch", folder)
    assert artifacts.find(tmp_path).arm == "scratch"
    add_row(tmp_path, "natural", folder)
    for arm in ("", "scrach"):
        with refused_at("--arm") as error:
            artifacts.find(tmp_path, arm)
        assert "scratch" in str(error.value)


def test_stage_run_outside_of_a_study_is_named_by_its_chain(tmp_path):
    folder = write_run(tmp_path / "study")
    folder = folder.rename(tmp_path / folder.name)
    assert artifacts.find(folder).arm == "natural > texture > target"
    with refused_at("--arm"):
        artifacts.find(folder, "two_stage")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hash": 1}', "null"])
def test_damaged_lineage_is_refused_by_its_name(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "lineage.json").write_text(text)
    with refused_at(str(folder / "lineage.json")):
        artifacts.find(folder)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with refused_at(str(tmp_path)):
        artifacts.find(tmp_path)
