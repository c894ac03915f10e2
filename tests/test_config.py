"""Config file -> settings: what is unknown or impossible is named."""

import dataclasses

import pytest
from basics import REPOSITORY
from ml_collections import ConfigDict

from twostage_jax import config
from twostage_jax import config as configs
from twostage_jax.errors import UserError


def config_file(name, variant=""):
    module = configs.config_file(REPOSITORY / "configs" / name)
    return module.get_config(*([variant] if variant else []))


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
        ("transfer", config.TransferConfig),
        ("optim", config.OptimConfig),
        ("train", config.TrainConfig),
        ("augment", config.AugmentConfig),
    ):
        assert set(target[block]) == set(cls.__dataclass_fields__)
    assert set(raw.model.to_dict()) == set(config.ModelConfig.__dataclass_fields__)
    assert set(raw.study.to_dict()) == set(config.StudyConfig.__dataclass_fields__)


def test_values_of_the_file_arrive(raw):
    raw.stages.texture.optim.learning_rate = 0.125
    parsed = configs.parse(raw)
    assert parsed.stages["texture"].optim.learning_rate == 0.125
    assert parsed.arms["two_stage"] == ("natural", "texture", "target")


def test_integer_passes_for_a_float(raw):
    raw = ConfigDict({**raw.to_dict()})
    raw.model.dropout = 0
    dropout = configs.parse(raw).model.dropout
    assert dropout == 0.0 and isinstance(dropout, float)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("stages.target.optim.learing_rate", 0.1, "Did you mean 'learning_rate'"),
        ("stages.target.optimizer", {}, "unknown setting"),
        ("modell", {}, "Did you mean 'model'"),
        ("stages.target.optim.name", "sdg", "must be one of 'sgd', 'adamw'"),
        ("stages.target.train.steps", 0, "must be positive"),
        ("stages.target.train.steps", 1.5, "must be of type int"),
        ("stages.target.train.steps", True, "must be of type int"),
        ("stages.target.train.steps", 20, "it must be below train.steps"),
        ("stages.target.optim.learning_rate", float("nan"), "must be finite"),
        ("stages.target.optim.freeze", "conv1", "must be a tuple"),
        ("stages.target.optim.freeze", ("conv(",), "no regular expression"),
        ("stages.target.optim.lr_factors", (("a",),), "must have 2 entries"),
        ("stages.target.data.window", (-600.0,), "(centre, width)"),
        ("stages.target.data.window", (-600.0, 0.0), "positive widths"),
        ("stages.target.data.test", 1.0, "between 0 and 1"),
        ("stages.target.transfer.rules", ((".*", "copi"),), "Did you mean 'copy'"),
        ("model.dropout", 1.0, "below 1"),
        ("model.channels", 2, "must be one of 1, 3"),
        ("arms.two_stage", "natural > textur > target", "Did you mean 'texture'"),
        ("arms.two_stage", "natural > texture", "must end at 'target'"),
        ("arms.two_stage", "natural > natural > target", "visits a stage twice"),
        ("study.arms", ("two_stag",), "Did you mean 'two_stage'"),
        ("study.seeds", (1, 1), "all unlike"),
        ("study.seeds", (), "one or more"),
        ("study.fractions", (0.0,), "shares above 0"),
        ("study.fractions", (0.5, 0.5), "one twice"),
        ("study.folds", 1, "0 for one split"),
        ("study.side_by_side", -1, "give 0"),
        (
            "study.grid",
            (("optim.lerning_rate", (0.1,)),),
            "Did you mean 'learning_rate'",
        ),
        ("study.grid", (("data.window", (1.0,)),), "must begin with one of transfer."),
        ("study.grid", (("optim", (1.0,)),), "unknown setting"),
        ("study.grid", (("optim.learning_rate", ("a",)),), "must be of type float"),
        ("study.grid", (("optim.learning_rate", ()),), "needs values, all unlike"),
        ("study.grid", (("optim.momentum", (0.9, 0.9)),), "needs values, all unlike"),
        ("study.grid", (("optim.momentum", (0.9, 1.0)),), "below 1"),
        ("study.grid", (("optim.momentum", (0.9,)),) * 2, "names a setting twice"),
        (
            "study.grid",
            (("optim.warmup_steps", (5, 400)),),
            "below train.steps (400)",
        ),
        ("study.grid", (("train.steps", (100, 400)),), "'train.steps' is not to be"),
        ("study.grid", (("train.batch_size", (32,)),), "'train.batch_size' is not"),
    ],
)
def test_bad_setting_is_named(raw, path, value, words):
    tree = raw.to_dict()
    node = tree
    *parents, last = path.split(".")
    for name in parents:
        node = node[name]
    node[last] = value
    with pytest.raises(UserError) as error:
        configs.parse(ConfigDict(tree))
    assert words in str(error.value)
    assert "config." in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_the_grid_replace_those_of_the_stage(raw):
    target = configs.parse(raw).stages["target"]
    place = [("optim.learning_rate", 1), ("transfer.reinitialise", "dense")]
    changed = configs.with_values(target, place)
    assert changed.optim.learning_rate == 1.0
    assert changed.transfer.reinitialise == "dense"
    assert changed.train == target.train and changed.data == target.data
    assert target.optim.learning_rate == 0.002


def test_target_stage_is_required(raw):
    tree = raw.to_dict()
    del tree["stages"]["target"]
    with pytest.raises(UserError, match="config.stages.target is missing"):
        configs.parse(ConfigDict(tree))


@pytest.mark.parametrize(
    "primary",
    [
        ("two_stage", "scrach", "accuracy"),
        ("scratch", "scratch", "accuracy"),
        ("two_stage", "scratch", "acuracy"),
    ],
)
def test_a_primary_endpoint_that_means_nothing_is_refused(raw, primary):
    raw.study.primary = primary
    with pytest.raises(UserError) as error:
        configs.parse(raw)
    assert error.value.where == "config.study.primary"


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
