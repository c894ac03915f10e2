"""Training steps of a tiny network."""

import jax
import numpy as np

from twostage_jax import models
from twostage_jax.config import AugmentConfig, ModelConfig, OptimConfig
from twostage_jax.train import feed, parallel, steps


def constants(classes=3):
    return steps.Constants(
        np.zeros(classes, np.float32),
        np.full(1, 0.5, np.float32),
        np.full(1, 0.25, np.float32),
    )


def step_settings(**changes):
    return steps.StepSettings(
        **{
            "model": ModelConfig(name="tiny", image_size=8, dropout=0.0),
            "optim": OptimConfig(learning_rate=0.1, weight_decay=0.0, momentum=0.0),
            "augment": AugmentConfig(),
            "steps": 4,
            "num_classes": 3,
            "normalise": "fixed",
            "window": (-600.0, 1500.0),
            "label_smoothing": 0.0,
            "transferred": frozenset(),
            **changes,
        }
    )


def fresh(settings):
    module = steps.build_model(settings.model, settings.num_classes, None)
    size, channels = settings.model.image_size, settings.model.channels
    return models.init(module, jax.random.key(0), size, channels)


def train(settings, variables, dataset, indices, constant=None, placement=None):
    """Takes a step for each row of indices, on all devices unless placed otherwise."""
    run = variables, indices, 5
    return side_by_side(
        settings, [run], dataset, placement or parallel.alone(), constant
    )[0]


def side_by_side(settings, runs, dataset, placement, constant=None):
    """Trains (variables, indices, key) runs; returns the state and metrics of each."""
    states = [steps.create_state(settings, variables) for variables, _, _ in runs]
    keys = [np.asarray(jax.random.key_data(jax.random.key(k))) for _, _, k in runs]
    state, metrics = parallel.programs(settings, placement.axis_name).train(
        placement.put(states),
        feed.feed(dataset, placement.devices).data,
        placement.arrange(np.stack([indices for _, indices, _ in runs])),
        placement.put(keys),
        placement.put([constant or constants()] * len(runs)),
    )
    metrics = parallel.read_metrics(metrics, placement)
    return [
        (placement.take(state, i), {name: m[i] for name, m in metrics.items()})
        for i in range(len(runs))
    ]
