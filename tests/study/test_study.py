"""A whole study of a tiny network in one process: interrupted, resumed, changed."""

import contextlib
import dataclasses
import errno
import json
import signal

import jax
import numpy as np
import pytest
from basics import make_dataset, refused_at
from small_study import parsed
from tiny_study import TINY, Killed, assert_close, events, restored_at, tiny_study

from twostage_jax import io, runtime
from twostage_jax.errors import UserError
from twostage_jax.study import artifacts, baselines, external, plan
from twostage_jax.train import checkpoint, evaluate

__all__ = ["events", "tiny_study"]  # Fixtures.


def assert_same_results(one, other):
    """Rows and predictions are bit-identical."""
    rows = [json.loads((w / "results.json").read_text())["rows"] for w in (one, other)]
    assert rows[0] == rows[1]
    for row in rows[0]:
        arrays = [np.load(workdir / row["predictions"]) for workdir in (one, other)]
        assert arrays[0].files == arrays[1].files
        for name in arrays[0].files:
            assert arrays[0][name].tobytes() == arrays[1][name].tobytes()


def test_study_killed_anywhere_ends_bit_identical(tiny_study, events, tmp_path):
    tiny_study(tmp_path / "whole")
    total = events.count
    for kill_at in np.linspace(2, total - 1, 4).astype(int):
        workdir = tmp_path / str(kill_at)
        events.count, events.kill_at = 0, kill_at
        with pytest.raises(Killed):
            tiny_study(workdir)
        events.kill_at = None
        tiny_study(workdir)
        assert_same_results(tmp_path / "whole", workdir)
        assert not list(workdir.glob("stages/*/states"))
        assert not list(workdir.glob("stages/*/under_way.json"))


def test_study_killed_again_and_again_ends_bit_identical(tiny_study, events, tmp_path):
    tiny_study(tmp_path / "whole")
    kills, events.kill_at = 0, 30
    while True:
        events.count = 0
        try:
            tiny_study(tmp_path / "again")
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert_same_results(tmp_path / "whole", tmp_path / "again")


def test_a_seed_added_and_cut_off_goes_on_alone(
    tiny_study, events, monkeypatch, tmp_path
):
    """Finished runs do not change, and saved states are not lost."""
    alone = {"study.seeds": (0,), "study.arms": ("scratch",)}
    both = {"study.seeds": (0, 1), "study.arms": ("scratch",)}
    tiny_study(tmp_path, **alone)
    [done] = tmp_path.glob("stages/*/lineage.json")
    before = done.read_bytes()
    events.count, events.kill_at = 0, 6  # Two marks, two saves: the second is there.
    with pytest.raises(Killed):
        tiny_study(tmp_path, **both)
    [states] = tmp_path.glob("stages/*/states")
    assert sorted(path.name for path in states.iterdir()) == ["6"]
    events.kill_at = None
    assert restored_at(monkeypatch, lambda: tiny_study(tmp_path, **both)) == [6]
    assert done.read_bytes() == before


SCRATCH = {"study.arms": ("scratch",)}


@pytest.mark.parametrize(("width", "then"), [(2, 1), (1, 2)])
def test_cut_off_run_goes_on_in_another_layout(
    tiny_study, events, monkeypatch, tmp_path, width, then
):
    """Side by side and then one by one, or the reverse: to float tolerance."""
    before = {**SCRATCH, "study.side_by_side": width}
    after = {**SCRATCH, "study.side_by_side": then}
    tiny_study(tmp_path / "whole", **before)
    events.count, events.kill_at = 0, 10 if width == 2 else 6
    with pytest.raises(Killed):
        tiny_study(tmp_path / "cut", **before)
    events.kill_at = None
    steps = restored_at(monkeypatch, lambda: tiny_study(tmp_path / "cut", **after))
    assert steps == ([6, 6] if width == 2 else [6, None])
    assert_close(tmp_path / "whole", tmp_path / "cut")


def test_report_is_written_anew_when_results_change(tiny_study, tmp_path):
    def run(rate):
        tiny_study(tmp_path, **SCRATCH, **{"stages.target.optim.learning_rate": rate})
        return len(tiny_study.drawn)

    assert run(0.1) == 1
    assert run(0.1) == 1
    assert run(0.2) == 2
    # Nothing to train, but the report shows the other rate.
    assert run(0.1) == 3


def test_rows_of_other_seeds_count_if_these_settings_would_make_them(
    tiny_study, tmp_path
):
    def seeds(**changes):
        found = tiny_study(tmp_path, **changes)["rows"]
        return sorted({row["seed"] for row in found})

    texture = {"study.arms": ("texture",)}
    assert seeds(**texture, **{"study.seeds": (1,)}) == [1]
    assert seeds(**texture, **{"study.seeds": (0,)}) == [0, 1]
    # A file half-written by a killed process is no row.
    (tmp_path / "rows" / ".texture-seed7.123.json").write_text("{")
    assert seeds(**texture, **{"study.seeds": (0,)}) == [0, 1]
    other_chain = {"arms.texture": "natural > target", "study.seeds": (0,)}
    assert seeds(**texture, **other_chain) == [0]
    tiny_study.made["texture"] = make_dataset(seed=11)
    assert seeds(**texture, **{"study.seeds": (0,)}) == [0]


def test_full_disk_leaves_earlier_saves_usable(tiny_study, monkeypatch, tmp_path):
    tiny_study(tmp_path / "whole", **SCRATCH)
    save = checkpoint.StateStore.save

    def full(store, step, tree, progress):
        if step > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(store, step, tree, progress)

    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(checkpoint.StateStore, "save", full)
        tiny_study(tmp_path / "cut", **SCRATCH)
    assert error.value.errno == errno.ENOSPC
    run = lambda: tiny_study(tmp_path / "cut", **SCRATCH)  # noqa: E731
    assert restored_at(monkeypatch, run) == [6, 6]
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_evaluation_that_is_not_finite_is_named(tiny_study, monkeypatch, tmp_path):
    """The last step may spoil the parameters without a loss that shows it."""
    nothing = {"loss": float("nan"), "balanced_accuracy": 0.5}
    monkeypatch.setattr(evaluate, "_quick_scores", lambda *_: nothing)
    with pytest.raises(UserError) as error:
        tiny_study(tmp_path, **SCRATCH)
    assert error.value.where.startswith("target")
    assert all(fact in str(error.value) for fact in ("validation", "nan", "step 6"))


def test_state_of_l2_sp_is_saved_and_resumed(tiny_study, events, tmp_path):
    """It keeps copies of penalised kernels only: an empty array could not be saved."""
    pulled = {"stages.target.optim.l2_sp": 0.01, "study.seeds": (0,)}
    tiny_study(tmp_path / "whole", **pulled)
    events.count, events.kill_at = 0, 12
    with pytest.raises(Killed):
        tiny_study(tmp_path / "cut", **pulled)
    events.kill_at = None
    tiny_study(tmp_path / "cut", **pulled)
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_signal_during_the_last_export_stops_before_results(
    tiny_study, tmp_path, monkeypatch
):
    save = artifacts.save_predictions

    def signalled(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return save(*arguments)

    monkeypatch.setattr(artifacts, "save_predictions", signalled)
    with pytest.raises(runtime.Interrupted):
        tiny_study(tmp_path, **SCRATCH)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(artifacts, "save_predictions", save)
    tiny_study(tmp_path, **SCRATCH)
    assert (tmp_path / "results.json").exists()


def test_second_process_is_refused_seed_by_seed(tiny_study, tmp_path):
    with io.locked(tmp_path / ".seed1.lock", "it"):
        with refused_at(f"--workdir={tmp_path} (seed 1)"):
            tiny_study(tmp_path, **SCRATCH)
        tiny_study(tmp_path, **SCRATCH, **{"study.seeds": (0,)})
    tiny_study(tmp_path, **SCRATCH)


def test_best_place_of_the_grid_is_chosen_on_validation(tiny_study, tmp_path):
    grid = {"study.grid": (("optim.learning_rate", (1e-6, 0.05)),)}
    for row in tiny_study(tmp_path, **SCRATCH, **grid)["rows"]:
        tried = row["tried"]
        assert [t["settings"] for t in tried] == [
            {"optim.learning_rate": 1e-6}, {"optim.learning_rate": 0.05},
        ]  # fmt: skip
        scores = [t["validation"]["balanced_accuracy"] for t in tried]
        assert [t["chosen"] for t in tried] == [False, True] and scores[1] > scores[0]
        assert row["stage_runs"] == [tried[1]["stage_run"]]
        told = tmp_path / "stages" / tried[1]["stage_run"] / "lineage.json"
        history = json.loads(told.read_text())["history"]
        assert scores[1] == history[-1]["validation_balanced_accuracy"]


def test_lineage_says_what_a_run_came_from(tiny_study, tmp_path, capsys):
    [row] = tiny_study(tmp_path, **{"study.arms": ("texture",), "study.seeds": (3,)})[
        "rows"
    ]
    first, last = (
        json.loads((tmp_path / "stages" / name / "lineage.json").read_text())
        for name in row["stage_runs"]
    )
    assert first["parent"] is None and last["parent"] == first["hash"]
    assert first["seconds"] > 0 and last["seconds"] > 0
    handed_over = "texture > target (seed 3): copied 8 (96 values), re-initialised 2"
    assert handed_over in capsys.readouterr().out
    assert last["chain"] == row["stage_runs"]
    assert (last["stage"], last["seed"], last["fraction"], last["fold"]) == (
        "target", 3, 1.0, 0,
    )  # fmt: skip
    made = tiny_study.made["target"]
    assert last["data"]["fingerprint"] == made.fingerprint
    assert last["data"]["notes"] == list(made.notes)
    assert sum(last["data"]["examples"].values()) == len(made)
    assert sum(last["data"]["groups"].values()) == len(np.unique(made.groups))
    assert last["settings"]["train"]["steps"] == 18
    assert last["model"]["name"] == "tiny"
    assert [entry["step"] for entry in last["history"]] == [6, 12, 18]
    assert last["validation"] in last["history"]
    assert last["scores"] == row["metrics"]
    assert last["versions"]["jax"] == jax.__version__
    assert row["n_train"] == last["data"]["examples"]["train"]
    assert row["n_test"] == last["data"]["examples"]["test"]


def test_source_stage_may_see_smaller_images_than_the_target(tiny_study, tmp_path):
    smaller = {"stages.texture.data.image_size": 6, "study.seeds": (0,)}
    [row] = tiny_study(tmp_path, **smaller)["rows"]
    sizes = [
        json.loads((tmp_path / "stages" / name / "lineage.json").read_text())["model"][
            "image_size"
        ]
        for name in row["stage_runs"]
    ]
    assert sizes == [6, 8]


def test_dense_layers_refuse_another_image_size(tiny_study, tmp_path):
    smaller = {"stages.texture.data.image_size": 24, "model.image_size": 32}
    with refused_at("config.stages.target.transfer"):
        tiny_study(
            tmp_path,
            **smaller,
            **{"model.name": "caffenet_small", "model.head": "dense"},
        )


ALL_BASELINES = ("majority", "mean_grey", "descriptors", "frozen")


def test_baselines_share_the_splits_of_the_arms(tmp_path, tiny_study):
    changes = {
        "study.arms": ("scratch", "texture"),
        "study.seeds": (0,),
        "study.folds": 2,
        "study.baselines": ALL_BASELINES,
    }
    collected = tiny_study(tmp_path, **changes)
    names = ["majority", "mean_grey", "descriptors", "frozen_random", "frozen_texture"]
    found = {(row["arm"], row["fold"]): row for row in collected["baselines"]}
    assert set(found) == {(name, fold) for name in names for fold in (0, 1)}
    for arm in collected["rows"]:
        tested = np.load(tmp_path / arm["predictions"])
        for name in names:
            row = found[name, arm["fold"]]
            saved = np.load(tmp_path / row["predictions"])
            np.testing.assert_array_equal(saved["ids"], tested["ids"])
            np.testing.assert_array_equal(saved["labels"], tested["labels"])
            np.testing.assert_allclose(saved["probabilities"].sum(1), 1, rtol=1e-5)
            assert row["n_train"] == arm["n_train"] and row["groups"] == arm["groups"]
    # Brightness tells the class.
    assert found["mean_grey", 0]["metrics"]["balanced_accuracy"] > 0.7
    assert found["majority", 0]["metrics"]["balanced_accuracy"] == pytest.approx(1 / 3)


def test_baselines_see_as_much_of_an_image_as_the_arms(tmp_path, tiny_study):
    images = tiny_study.made["target"].images.copy()
    images[:, 2:6, 2:6] = 100  # The centre says nothing, the margin tells the class.
    made = dataclasses.replace(tiny_study.made["target"], images=images)
    tiny_study.made["target"] = made
    changes = {
        **SCRATCH,
        "study.seeds": (0,),
        "study.baselines": ("mean_grey", "descriptors", "frozen"),
        "model.image_size": 4,
    }
    for average, informed in ((True, True), (False, False)):
        found = tiny_study(
            tmp_path / str(average),
            **changes,
            **{"stages.target.augment.average": average},
        )["baselines"]
        assert len(found) == 3
        for row in found:
            score = row["metrics"]["balanced_accuracy"]
            assert (score > 0.5) == informed, row["arm"]


def test_baselines_keep_their_classifiers(tmp_path, tiny_study):
    """Applied again to the images of the target, they predict the same."""
    changes = {
        "study.arms": ("scratch", "texture"),
        "study.seeds": (0, 1),
        "study.baselines": ALL_BASELINES,
        "stages.target.data.normalise": "dataset",
    }
    collected = tiny_study(tmp_path, **changes)
    run = artifacts.find(tmp_path, "scratch")
    dataset = tiny_study.made["target"]
    features = external.features(collected["config"], run, dataset)
    assert len(collected["baselines"]) == 10
    for row in collected["baselines"]:
        found = baselines.predict(tmp_path, row, features)
        tested = np.load(tmp_path / row["predictions"])
        places = {name: i for i, name in enumerate(dataset.ids)}
        found = found[[places[name] for name in tested["ids"]]]
        np.testing.assert_allclose(found, tested["probabilities"], atol=1e-6)
    assert baselines.predict(tmp_path / "earlier", row, features) is None


def test_finished_baselines_are_not_computed_again(tmp_path, tiny_study, monkeypatch):
    changes = {"study.seeds": (0,), "study.baselines": ("mean_grey", "frozen")}
    first = tiny_study(tmp_path, **changes)
    made = []
    monkeypatch.setattr(
        baselines, "_make", lambda materials, one, features: made.append(one.name)
    )
    assert tiny_study(tmp_path, **changes) == first and not made
    # Another source network makes another frozen baseline, and no other mean grey.
    with contextlib.suppress(Exception):
        tiny_study(tmp_path, **changes, **{"stages.texture.train.steps": 12})
    assert made == ["frozen_texture"]


def test_networks_that_compute_other_things_make_other_baselines(
    tmp_path, tiny_study, monkeypatch
):
    """The frozen random network has no stage run whose hash would change."""
    changes = {**SCRATCH, "study.seeds": (0,), "study.baselines": ("frozen",)}
    tiny_study(tmp_path, **changes)
    made = []
    monkeypatch.setattr(
        baselines, "_make", lambda materials, one, features: made.append(one.name)
    )
    monkeypatch.setattr(plan, "RESULT_VERSION", -1)
    tiny_study(tmp_path, **changes)
    assert made == ["frozen_random"]


def test_an_unknown_baseline_is_refused():
    with refused_at("config.study.baselines"):
        parsed(**{**TINY, "study.baselines": ("descriptor",)})
