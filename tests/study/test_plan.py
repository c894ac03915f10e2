"""The tree of stage runs: shared runs, their order, and their hashes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from basics import make_dataset, refused_at
from ml_collections import ConfigDict
from small_study import config_file, datasets, parsed, runs_of

from twostage_jax import config as configs
from twostage_jax.ct.phantom import CLASS_NAMES, DISEASES
from twostage_jax.stats.metrics import MIN_GROUPS_A_CLASS
from twostage_jax.study import plan
from twostage_jax.study.plan import split_of
from twostage_jax.train import parallel


def grouped(config, width):
    return plan.groups(config, runs_of(config), width)


SEVERAL = {
    "study.seeds": (0, 1, 2),
    "study.fractions": (1.0, 0.5),
    "study.folds": 2,
    "study.grid": (("optim.learning_rate", (0.1, 0.01)),),
}


def test_shared_beginnings_are_trained_once_a_seed():
    runs = runs_of(parsed(**SEVERAL))
    stages = [run.stage for run in runs]
    # natural; texture from scratch, and from natural; and each place of the study.
    assert stages.count("natural") == 3
    assert stages.count("texture") == 3 * 2
    assert stages.count("target") == 3 * 4 * 2 * 2 * 2
    assert len({run.hash for run in runs}) == len(runs)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_groups_hold_every_run_once_after_its_ancestors(width):
    config = parsed(**SEVERAL)
    seen = set()
    for group in grouped(config, width):
        assert 1 <= len(group) <= width
        for run in group:
            assert run.hash not in seen
            assert run.parent is None or run.parent.hash in seen
        assert len({(run.stage, run.tuned) for run in group}) == 1
        seen |= {run.hash for run in group}
    assert seen == {run.hash for run in runs_of(config)}


def test_groups_are_full_where_they_can_be():
    """Targets of all arms go side by side: they wait until every parent is there."""
    config = parsed(**{"study.seeds": (0, 1)})
    sizes = [(group[0].stage, len(group)) for group in grouped(config, 4)]
    assert sizes == [("natural", 2), ("texture", 4), ("target", 4), ("target", 4)]


def test_groups_are_the_same_every_time():
    config = parsed(**SEVERAL)
    assert grouped(config, 3) == grouped(config, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.target.optim.l2_sp": 0.1},
        {"study.grid": (("optim.l2_sp", (0.0, 0.1)),)},
    ],
)
def test_what_l2_sp_pulls_is_the_same_in_a_group(changes):
    """The pulled layers are part of the program: only equal ones share one."""
    config = parsed(**changes, **{"study.seeds": (0, 1)})
    for group in grouped(config, 8):
        if group[0].settings(config).optim.l2_sp:
            assert len({run.parent and run.parent.stage for run in group}) == 1


@pytest.mark.parametrize(
    ("backend", "count", "width", "sizes"),
    [
        ("gpu", 0, 4, []),
        ("gpu", 4, 4, [4]),
        ("gpu", 7, 4, [4, 3]),
        ("gpu", 6, 4, [4, 1, 1]),  # Two would leave two accelerators free.
        ("gpu", 3, 1, [1, 1, 1]),
        ("cpu", 6, 4, [4, 2]),
        ("cpu", 5, 4, [4, 1]),
        ("cpu", 3, 8, [3]),
    ],
)
def test_places_are_used_where_that_pays(monkeypatch, backend, count, width, sizes):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    runs = list(range(count))
    parts = plan.chunks(runs, width)
    assert [len(part) for part in parts] == sizes
    assert sum(parts, []) == runs


def hashes(config, made=None):
    """Returns arm and stage -> hash, of the first row of each arm."""
    found = {}
    for row in plan.rows(config, made or datasets()):
        for run in row.candidates[0].chain:
            found.setdefault((row.arm, run.stage), run.hash)
    return found


def changed(changes, made=None):
    """Returns the (arm, stage) pairs whose hash changes with settings or data."""
    before, after = hashes(parsed()), hashes(parsed(**changes), made)
    return {place for place in before if before[place] != after[place]}


ALL = {
    ("scratch", "target"), ("natural", "natural"), ("natural", "target"),
    ("texture", "texture"), ("texture", "target"), ("two_stage", "natural"),
    ("two_stage", "texture"), ("two_stage", "target"),
}  # fmt: skip
TARGETS = {place for place in ALL if place[1] == "target"}
NATURALS = {place for place in ALL if place[0] in ("natural", "two_stage")}


@pytest.mark.parametrize(
    ("changes", "retrained"),
    [
        ({"study.seeds": (1, 0)}, ALL),
        ({"study.split_seed": 1}, ALL),
        ({"model.dropout": 0.3}, ALL),
        ({"study.folds": 2}, TARGETS),
        ({"study.fractions": (0.5,)}, TARGETS),
        ({"study.grid": (("optim.learning_rate", (0.5,)),)}, TARGETS),
        ({"stages.target.optim.learning_rate": 0.5}, TARGETS),
        ({"stages.natural.train.steps": 30}, NATURALS),
        ({"stages.natural.data.image_size": 24}, NATURALS),
        ({"stages.natural.data.image_size": 32}, set()),  # That of the model.
        (
            {"stages.target.transfer.reinitialise": "dense"},
            TARGETS - {("scratch", "target")},
        ),
        (
            {"stages.texture.transfer.reinitialise": "dense"},
            {("two_stage", "texture"), ("two_stage", "target")},
        ),
        ({"stages.target.train.save_every": 5}, set()),
        ({"stages.target.data.per_class": 5}, set()),  # Unless the images change.
        ({"study.draw": "patch"}, set()),  # At fraction 1 nothing is drawn.
        ({"study.side_by_side": 4, "study.arms": ()}, set()),
        ({"name": "another"}, set()),
    ],
)
def test_a_change_retrains_what_it_changes_and_nothing_else(changes, retrained):
    assert changed(changes) == retrained


def test_changed_images_retrain_what_saw_them():
    other = datasets(texture=make_dataset(seed=9, groups=["a"] * 60))
    saw = {place for place in ALL if place[0] in ("texture", "two_stage")}
    assert changed({}, other) == saw - {("two_stage", "natural")}


def test_draw_matters_below_the_whole_training_set():
    half = {"study.fractions": (0.5,)}
    one = hashes(parsed(**half))
    other = hashes(parsed(**half, **{"study.draw": "patch"}))
    assert {place for place in one if one[place] != other[place]} == TARGETS


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0, 600), (1, 50), (10, 150), (100, 600)]
)
def test_small_set_takes_as_many_steps_as_its_epochs(epochs, steps):
    """An epoch of 60 examples in batches of 4 has 15 steps."""
    names = {"steps": 600, "eval_every": 50, "batch_size": 4, "epochs": epochs}
    config = parsed(**{f"stages.target.train.{k}": v for k, v in names.items()})
    made = make_dataset()
    assert len(made) == 60
    shorter = plan.shortened(config, {"target": made})
    assert shorter.stages["target"].train.steps == steps
    assert shorter.stages["natural"] == config.stages["natural"]


@pytest.mark.parametrize("phase", ["warmup_steps", "head_steps"])
@pytest.mark.parametrize("in_grid", [False, True])
def test_a_first_phase_as_long_as_the_epochs_is_refused(phase, in_grid):
    """An epoch of 60 examples has 15 steps, which 50 are the multiple nearest to."""
    changes = {f"stages.target.optim.{phase}": 50}
    if in_grid:
        changes = {"study.grid": ((f"optim.{phase}", (5, 50)),)}
    names = {"steps": 600, "eval_every": 50, "batch_size": 4, "epochs": 1}
    length = {f"stages.target.train.{k}": v for k, v in names.items()}
    config = parsed(**length, **changes)
    with refused_at(f"config.stages.target.optim.{phase}"):
        plan.shortened(config, {"target": make_dataset()})


def test_a_stage_run_says_what_it_is():
    rows = plan.rows(parsed(**SEVERAL), datasets())
    [last] = [row for row in rows if row.name == "two_stage-seed2-fraction0.5-fold1"]
    assert str(last.candidates[1]) == (
        "natural > texture > target (seed 2, fraction 0.5, fold 1, learning_rate 0.01)"
    )
    assert last.candidates[1].settings(parsed()).optim.learning_rate == 0.01


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"stages.texture.train.batch_size": 15}, "stages.texture.train.batch_size"),
        (
            {
                "stages.target.train.steps": 50,
                "study.grid": (("train.eval_every", (7,)),),
            },
            "stages.target.train.eval_every",
        ),
        ({"model.name": "caffenet_smal"}, "model.name"),
        ({"stages.target.data.source": "fantoms"}, "stages.target.data.source"),
        ({"stages.target.data.patints": 3}, "stages.target.data.patints"),
        ({"stages.target.data.patients": "three"}, "stages.target.data.patients"),
        ({"stages.target.data.window": (0.0, 1.0) * 3}, "stages.target.data.window"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_data(
    monkeypatch, changes, where
):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    with refused_at(f"config.{where}") as error:
        plan.check(parsed(**changes))
    assert "\n" not in str(error.value)


def test_stages_that_no_arm_visits_need_no_data():
    raw = config_file("folders.py").to_dict()
    raw["stages"]["target"]["data"]["path"] = "slices"
    raw["study"]["arms"] = ("scratch",)
    plan.check(configs.parse(ConfigDict(raw)))
    raw["study"]["arms"] = ("scratch", "natural")
    with refused_at("config.stages.natural.data.path"):
        plan.check(configs.parse(ConfigDict(raw)))


def test_cores_need_not_divide_a_batch(monkeypatch):
    """A run alone uses one device of a processor: six cores take batches of 64."""
    monkeypatch.setattr(jax, "device_count", lambda: 6)
    monkeypatch.setattr(jax, "local_device_count", lambda: 6)
    config = parsed(**{"stages.target.train.batch_size": 64})
    with refused_at("config.stages.natural.train.batch_size"):
        plan.check(config)
    monkeypatch.setattr(parallel, "made_of_cores", lambda: True)
    plan.check(config)


def both_sides():
    groups = ["shared"] + [f"p{i // 5}" for i in range(1, 59)] + ["shared"]
    return make_dataset(groups=groups, splits=["train"] * 45 + ["test"] * 15)


@pytest.mark.parametrize(
    ("changes", "target", "where", "facts"),
    [
        ({}, both_sides(), "data", ["'shared'"]),
        ({}, make_dataset(groups=["a"] * 60), "data", ["1 ", "test"]),
        ({}, make_dataset(groups=["a", "b"] * 30), "data", ["1 ", "validation"]),
        (
            {"study.folds": 7},
            make_dataset(groups=[f"p{i % 6}" for i in range(60)]),
            "data",
            ["6", "7"],
        ),
        (
            {},
            make_dataset(
                splits=["test" if i % 3 == 2 or i < 9 else "train" for i in range(60)]
            ),
            "data",
            ["'c'"],
        ),
        (
            {"study.fractions": (1.0, 0.02), "study.draw": "patch"},
            datasets()["target"],
            "data",
            ["0.02", "'a', 'b', 'c'"],
        ),
        (
            {"stages.target.optim.freeze": ("conv9/.*",)},
            datasets()["target"],
            "optim.freeze",
            ["conv9/.*"],
        ),
        (
            {"study.grid": (("optim.freeze", ((), ("conv9/.*",))),)},
            datasets()["target"],
            "optim.freeze",
            ["conv9/.*"],
        ),
        (
            {"stages.target.transfer.rules": (("params/conv9/.*", "copy"),)},
            datasets()["target"],
            "transfer",
            ["conv9"],
        ),
    ],
)
def test_data_and_rules_that_cannot_work_are_refused_before_training(
    changes, target, where, facts
):
    config, made = parsed(**changes), datasets(target=target)
    with refused_at(f"config.stages.target.{where}") as error:
        plan.check_data(config, made, plan.rows(config, made))
    assert all(fact in str(error.value) for fact in facts)


@pytest.mark.parametrize(
    "setting", ["model.image_size", "stages.natural.data.image_size"]
)
def test_images_too_small_for_the_network_name_the_setting_of_their_size(setting):
    config, made = parsed(**{"model.name": "caffenet", setting: 10}), datasets()
    with refused_at(f"config.{setting}"):
        plan.check_data(config, made, plan.rows(config, made))


def one_class_folds():
    """Patients of one class each, in as many folds as patients."""
    labels = [i // 20 for i in range(60)]
    made = make_dataset(groups=[f"p{i // 10}" for i in range(60)])
    return dataclasses.replace(made, labels=np.array(labels, np.int32))


def test_fold_of_one_class_is_refused():
    config = parsed(**{"study.folds": 6, "stages.target.data.validation": 0.4})
    made = datasets(target=one_class_folds())
    with refused_at("config.stages.target.data"):
        plan.check_data(config, made, plan.rows(config, made))


def phantoms(patients):
    """The classes and patients of the embedded target, without its pictures."""
    found = [
        (CLASS_NAMES.index(name), f"p{patient:02}")
        for patient in range(patients)
        for name in ("normal", *DISEASES[patient % len(DISEASES)])
        for _ in range(20)
    ]
    labels, groups = (np.array(values) for values in zip(*found, strict=True))
    made = make_dataset(len(found), classes=len(CLASS_NAMES), groups=groups)
    return dataclasses.replace(made, labels=labels.astype(np.int32))


def test_the_embedded_data_can_be_split_as_the_study_of_it_asks():
    config = configs.parse(config_file("two_stage.py", "study"))
    made = datasets(target=phantoms(config.stages["target"].data.options["patients"]))
    made["natural_long"] = made["natural"]
    rows = plan.rows(config, made)
    plan.check_data(config, made, rows)
    assert len(rows) == 5 * 5 * 4
    target = made["target"]
    test = split_of(config, target, rows[0].candidates[0]).test
    held = {(target.labels[i], target.groups[i]) for i in test}
    counts = np.bincount([label for label, _ in held], minlength=len(CLASS_NAMES))
    assert counts.min() >= MIN_GROUPS_A_CLASS


def test_each_seed_tests_every_patient_once_in_folds_of_its_own():
    config, made = parsed(**{"study.folds": 3, "study.seeds": (0, 1, 2)}), datasets()
    tested = {}
    for run in runs_of(config):
        if run.stage == "target":
            split = split_of(config, made["target"], run)
            groups = frozenset(made["target"].groups[split.test].tolist())
            tested.setdefault((run.seed, run.fold), set()).add(groups)
    # The same for every arm.
    assert all(len(of_arms) == 1 for of_arms in tested.values())
    folds = {place: groups for place, (groups,) in tested.items()}
    everyone = set(made["target"].groups.tolist())
    for seed in range(3):
        of_seed = [folds[seed, fold] for fold in range(3)]
        assert sorted(itertools.chain(*of_seed)) == sorted(everyone)
    assert len({frozenset(folds[seed, k] for k in range(3)) for seed in range(3)}) > 1


@pytest.mark.parametrize("draw", ["group", "patch"])
def test_every_arm_has_the_same_examples_at_every_fraction(draw):
    fractions = {"study.fractions": (1.0, 0.5, 0.25), "study.draw": draw}
    config, made = parsed(**fractions), datasets()
    trained = {}
    for row in plan.rows(config, made):
        split = split_of(config, made["target"], row.candidates[0])
        trained.setdefault(row.fraction, {})[row.arm] = split.train.tolist()
    for of_arms in trained.values():
        assert set(of_arms) == {"scratch", "natural", "texture", "two_stage"}
        assert all(of_arms["scratch"] == one for one in of_arms.values())
    whole, half, quarter = (set(trained[f]["scratch"]) for f in (1.0, 0.5, 0.25))
    assert quarter < half < whole


def test_one_split_is_the_same_for_every_seed():
    config, made = parsed(**{"study.seeds": (0, 1, 2)}), datasets()
    runs = [run for run in runs_of(config) if run.stage == "target"]
    splits = [split_of(config, made["target"], run) for run in runs]
    for split in splits:
        np.testing.assert_array_equal(split.test, splits[0].test)
        np.testing.assert_array_equal(split.train, splits[0].train)
