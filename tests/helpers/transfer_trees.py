"""Small trees of parameters for the tests of transfer, and their results."""

import jax
import numpy as np
import pytest

from twostage_jax.transfer import TransferError, transfer

COPY_ALL = [(".*", "copy")]
# Dense layer behind a map of 2 channels: 3 x 3 positions in the source.
CHANNELS = 2


def array(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def network(classes, seed):
    """A net with a BatchNorm, two dense layers and a head."""
    return {
        "params": {
            "conv1": {"kernel": array(3, 3, 1, 4, seed=seed), "bias": array(4)},
            "fc6": {"kernel": array(8, 6, seed=seed), "bias": array(6, seed=seed)},
            "fc7": {"kernel": array(6, 5, seed=seed)},
            "head": {
                "kernel": array(5, classes, seed=seed),
                "bias": array(classes, seed=seed),
            },
        },
        "batch_stats": {"norm1": {"mean": array(4, seed=seed)}},
    }


def one(value):
    """Variables with a single array."""
    return {"params": {"layer": {"kernel": value}}}


def move(source, target, action):
    """Transfers the only array of two trees."""
    variables, _ = transfer(one(source), one(target), [(".*", action)])
    return variables["params"]["layer"]["kernel"]


def violations(source, target, rules):
    with pytest.raises(TransferError) as caught:
        transfer(source, target, rules)
    return caught.value.violations


def only_violation(source, target, rules):
    (message,) = violations(source, target, rules)
    return message


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
