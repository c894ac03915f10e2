"""Config file -> settings: unknown and impossible settings are named."""

import dataclasses
import subprocess
import sys

import pytest
from basics import REPOSITORY, refused_at
from ml_collections import ConfigDict
from small_study import config_file

from twostage_jax import config as configs
from twostage_jax.errors import UserError


@pytest.fixture
def raw():
    return config_file("two_stage.py")


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (REPOSITORY / "configs").glob("*.py"))
)
def test_every_config_of_the_project_parses(name):
    parsed = configs.parse(config_file(name))
    assert all(chain[-1] == "target" for chain in parsed.arms.values())


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("two_stage.py", "study"),
        ("two_stage.py", "smoke"),
        ("folders.py", "texture_only"),
        ("patches.py", "smoke"),
        ("../experiments/covid.py", "DATA"),
        ("../experiments/covid.py", "DATA,texture_only"),
    ],
)
def test_every_variant_parses_under_a_name_of_its_own(name, variant):
    """A workdir belongs to one name."""
    parsed = configs.parse(config_file(name, variant))
    plain = [] if "covid" in name else [config_file(name).name]
    assert parsed.name not in plain
    how = {stage.data.normalise for stage in parsed.stages.values()}
    assert how == ({"patch"} if "texture_only" in variant else {"fixed"})


def test_default_config_lists_every_setting(raw):
    target = raw.stages.target.to_dict()
    for block, cls in (
        ("transfer", configs.TransferConfig),
        ("optim", configs.OptimConfig),
        ("train", configs.TrainConfig),
        ("augment", configs.AugmentConfig),
    ):
        assert set(target[block]) == set(cls.__dataclass_fields__)
    assert set(raw.model.to_dict()) == set(configs.ModelConfig.__dataclass_fields__)
    assert set(raw.study.to_dict()) == set(configs.StudyConfig.__dataclass_fields__)


def test_values_of_the_file_arrive(raw):
    raw.stages.texture.optim.learning_rate = 0.125
    parsed = configs.parse(raw)
    assert parsed.stages["texture"].optim.learning_rate == 0.125
    assert parsed.arms["two_stage"] == ("natural", "texture", "target")


@pytest.mark.parametrize(
    ("arms", "expected"), [(("scratch,",), ("scratch",)), (("",), ())]
)
def test_lists_of_flags_may_end_in_a_comma_or_be_empty(raw, arms, expected):
    with raw.unlocked():
        raw.study.arms = arms
    assert configs.parse(raw).study.arms == expected


def test_integer_passes_for_a_float(raw):
    raw = ConfigDict({**raw.to_dict()})
    raw.model.dropout = 0
    dropout = configs.parse(raw).model.dropout
    assert dropout == 0.0 and isinstance(dropout, float)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.target.optim.name", "sdg"),
        ("stages.target.train.steps", 0),
        ("stages.target.train.steps", 1.5),
        ("stages.target.train.steps", True),
        ("stages.target.optim.learning_rate", float("nan")),
        ("stages.target.optim.freeze", "conv1"),
        ("stages.target.optim.freeze", ("conv(",)),
        ("stages.target.optim.lr_factors", (("a",),)),
        ("stages.target.optim.lr_factors", (("(", 1.0),)),
        ("stages.target.optim.lr_factors", (("conv.*", -3.0),)),
        ("stages.target.optim.l2_sp", -0.1),
        ("stages.target.augment.shift", -1),
        ("stages.target.data.window", (-600.0,)),
        ("stages.target.data.window", (-600.0, 0.0)),
        ("stages.target.data.test", 1.0),
        ("stages.target.data.source", None),
        ("stages.target.transfer.rules", ((".*", "copi"),)),
        ("model", 3),
        ("model.dropout", 1.0),
        ("model.channels", 2),
        ("arms.two_stage", "natural > textur > target"),
        ("arms.two_stage", "natural > texture"),
        ("arms.two_stage", "natural > natural > target"),
        ("study.arms", ("two_stag",)),
        ("study.seeds", (1, 1)),
        ("study.seeds", (-1,)),
        ("study.seeds", ()),
        ("study.fractions", (0.0,)),
        ("study.fractions", (0.5, 0.5)),
        ("study.baselines", ("frozn",)),
        ("study.folds", 1),
        ("study.side_by_side", -1),
        ("study.grid", (("optim.lerning_rate", (0.1,)),)),
        ("study.grid", (("data.window", (1.0,)),)),
        ("study.grid", (("optim", (1.0,)),)),
        ("study.grid", (("optim.learning_rate", ("a",)),)),
        ("study.grid", (("optim.learning_rate", ()),)),
        ("study.grid", (("optim.momentum", (0.9, 0.9)),)),
        ("study.grid", (("optim.momentum", (0.9, 1.0)),)),
        ("study.grid", (("optim.momentum", (0.9,)),) * 2),
        ("study.grid", (("optim.warmup_steps", (5, 400)),)),
        ("study.grid", (("optim.head_steps", (5, 500)),)),
        ("stages.target.optim.head_steps", 5000),
        ("study.grid", (("train.steps", (100, 400)),)),
        ("study.grid", (("train.batch_size", (32,)),)),
        ("study.grid", (("train.epochs", (1, 50)),)),
        ("study.grid", (("augment.average", (False, True)),)),
        ("study.primary", ("two_stage", "scrach", "accuracy")),
        ("study.primary", ("scratch", "scratch", "accuracy")),
        ("study.primary", ("two_stage", "scratch", "acuracy")),
        ("study.primary", ("two_stage", "scratch", "brier")),
        ("study.primary", ("two_stage", "scratch", "ece")),
    ],
)
def test_bad_setting_is_named_in_one_line(raw, path, value):
    error = refused(raw, path, value)
    assert error.where == f"config.{path}"
    assert str(error).startswith(error.where) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("path", "value", "suggestion"),
    [
        ("stages.target.optim.learing_rate", 0.1, "learning_rate"),
        ("stages.target.optimizer", {}, "optim"),
        ("modell", {}, "model"),
        ("arms.two_stage", "natural > textur > target", "texture"),
        ("study.grid", (("optim.lerning_rate", (0.1,)),), "learning_rate"),
    ],
)
def test_misspelled_name_gets_a_suggestion(raw, path, value, suggestion):
    error = refused(raw, path, value)
    assert error.where == f"config.{path}" and f"'{suggestion}'?" in str(error)


def test_warm_up_must_end_before_the_training_does(raw):
    error = refused(raw, "stages.target.train.steps", 20)
    assert error.where == "config.stages.target.optim.warmup_steps"


def test_the_head_alone_may_be_trained_for_all_steps(raw):
    optim, train = raw.stages.target.optim, raw.stages.target.train
    optim.head_steps = train.steps
    assert configs.parse(raw).stages["target"].optim.head_steps == train.steps


def refused(raw, path, value):
    """Returns the error of a config with one value changed."""
    tree = raw.to_dict()
    node = tree
    *parents, last = path.split(".")
    for name in parents:
        node = node[name]
    node[last] = value
    if value is None:
        del node[last]
    with pytest.raises(UserError) as error:
        configs.parse(ConfigDict(tree))
    return error.value


def test_values_of_the_grid_replace_those_of_the_stage(raw):
    target = configs.parse(raw).stages["target"]
    place = [("optim.learning_rate", 1), ("transfer.reinitialise", "dense")]
    changed = configs.with_values(target, place)
    assert changed.optim.learning_rate == 1.0
    assert changed.transfer.reinitialise == "dense"
    assert changed.train == target.train and changed.data == target.data
    assert target.optim.learning_rate == 0.002


def test_target_stage_is_required(raw):
    assert refused(raw, "stages.target", None).where == "config.stages.target"


def test_config_is_read_without_jax():
    code = "import sys, twostage_jax.config; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_names_of_the_feature_analysis_are_not_names_of_arms(raw):
    raw.arms.random = "target"
    with refused_at("config.arms.random"):
        configs.parse(raw)


def test_a_study_without_the_arms_of_the_default_endpoint_is_sound(raw):
    del raw.arms["two_stage"]
    assert configs.parse(raw).study.primary[0] == "two_stage"


@pytest.mark.parametrize(
    ("file", "variant"), [("two_stage.py", "study"), ("folders.py", "")]
)
def test_the_control_trains_as_long_as_both_source_stages(file, variant):
    raw = config_file(file, variant)
    raw.stages.natural.train.steps = 700
    raw.stages.natural.train.batch_size = 32
    raw.stages.texture.train.steps = 300
    raw.stages.natural.optim.learning_rate = 0.5
    parsed = configs.parse(raw)
    natural, long = (parsed.stages[name] for name in ("natural", "natural_long"))
    assert parsed.arms["natural_long"] == ("natural_long", "target")
    assert long.train == dataclasses.replace(natural.train, steps=1000)
    assert (long.data, long.optim, long.augment) == (
        natural.data,
        natural.optim,
        natural.augment,
    )


def test_imported_stage_has_no_control_of_equal_steps():
    raw = config_file("folders.py")
    raw.stages.natural.weights = "file.npz"
    raw.stages.natural.weights_mean = (0.5,)
    parsed = configs.parse(raw)
    assert set(parsed.arms) == {"scratch", "natural", "texture", "two_stage"}
    raw.study.arms = ("natural_long",)
    parsed = configs.parse(raw)
    assert set(parsed.arms) == {"natural_long"}
    assert parsed.stages["natural_long"] == parsed.stages["natural"]
