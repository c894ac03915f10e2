"""Settings and data of a small study."""

import numpy as np
from basics import REPOSITORY, make_dataset
from ml_collections import ConfigDict

from twostage_jax import config as configs
from twostage_jax.study import plan


def config_file(name, variant=""):
    """Returns the `ConfigDict` of a file in `configs/`."""
    module = configs.config_file(REPOSITORY / "configs" / name)
    return module.get_config(*([variant] if variant else []))


def smoke(**changes):
    """Returns the smoke config with settings such as {'study.seeds': (0, 1)}."""
    tree = config_file("two_stage.py", "smoke").to_dict()
    for path, value in changes.items():
        node = tree
        *parents, last = path.split(".")
        for name in parents:
            node = node[name]
        node[last] = value
    return ConfigDict(tree)


def parsed(**changes):
    """Returns the settings of `smoke`."""
    return configs.parse(smoke(**changes))


def datasets(**changes):
    """Returns a data set per stage; two of them have 20 patients of three examples."""
    groups = np.array([f"patient{i // 3}" for i in range(60)])
    made = {
        "natural": make_dataset(seed=1),
        "texture": make_dataset(seed=2, groups=groups),
        "target": make_dataset(seed=3, groups=groups),
    }
    return {**made, **changes}


def runs_of(config):
    """Returns the stage runs of a study on `datasets`."""
    return plan.stage_runs(plan.rows(config, datasets()))
