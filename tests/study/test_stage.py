"""Statistics of the training images of a stage run, and its notes on the transfer."""

import dataclasses

import jax
import numpy as np
import pytest
from basics import make_dataset
from small_study import datasets, parsed, runs_of
from tiny_study import ONE, TINY, tiny_study

from twostage_jax import models
from twostage_jax.study import artifacts, stage
from twostage_jax.study.plan import split_of
from twostage_jax.train import checkpoint, novelty, steps

__all__ = ["tiny_study"]  # A fixture.

# Two images to train on, of values 0 and 102 and of 51 and 255; two that must not count.
VALUES = np.array([[0, 102], [51, 255], [255, 255], [255, 255]], np.uint8)
TRAIN = np.array([0, 1])


def settings(**changes):
    changed = {f"stages.target.{name}": value for name, value in changes.items()}
    return parsed(**changed).stages["target"]


def with_images(images, labels=(0, 1, 0, 1)):
    made = make_dataset(count=len(images), classes=2)
    return dataclasses.replace(made, images=images, labels=np.array(labels, np.int32))


def test_mean_and_deviation_of_the_set_are_those_of_the_training_images():
    dataset = with_images(VALUES.reshape(4, 1, 2, 1))
    how = settings(**{"data.normalise": "dataset"})
    found = stage.constants_of(how, 1, dataset, TRAIN)
    unit = [0, 0.4, 0.2, 1.0]
    mean = sum(unit) / 4
    deviation = (sum((value - mean) ** 2 for value in unit) / 4) ** 0.5
    np.testing.assert_allclose(found.mean, [mean], rtol=1e-6)
    np.testing.assert_allclose(found.deviation, [deviation], rtol=1e-6)


def test_mean_and_deviation_are_those_of_each_channel_after_its_window():
    """HU of -1000, -500, 0 and 500, in windows from -1000 to 1000 and from 0 to 500."""
    hu = np.array([-1000, -500, 0, 500, 3000, 3000], np.int16).reshape(3, 2, 1, 1)
    windows = (0.0, 2000.0, 250.0, 500.0, 0.0, 2000.0)
    how = settings(**{"data.normalise": "dataset", "data.window": windows})
    found = stage.constants_of(how, 3, with_images(hu, (0, 1, 0)), TRAIN)
    wide, narrow = [0, 0.25, 0.5, 0.75], [0, 0, 0, 1]
    np.testing.assert_allclose(found.mean, [0.375, 0.25, 0.375], rtol=1e-6)
    spread = [np.std(values) for values in (wide, narrow, wide)]
    np.testing.assert_allclose(found.deviation, spread, rtol=1e-6)


def test_fixed_mean_and_classes_as_frequent_as_they_are():
    how = settings(**{"data.normalise": "fixed", "train.balance": False})
    found = stage.constants_of(how, 3, with_images(VALUES.reshape(4, 1, 2, 1)), TRAIN)
    assert found.mean.tolist() == [0.5] * 3 and found.deviation.tolist() == [0.25] * 3
    assert found.offsets.tolist() == [0, 0]


def test_offsets_of_balanced_classes_are_log_frequencies_in_training():
    # Trained on: three of class 0 and one of class 1.
    labels = (0, 0, 0, 1, 1, 1, 1, 1)
    dataset = with_images(np.zeros((8, 1, 1, 1), np.uint8), labels)
    how = settings(**{"train.balance": True})
    found = stage.constants_of(how, 1, dataset, np.arange(4))
    np.testing.assert_allclose(np.exp(found.offsets), [3 / 4, 1 / 4], rtol=1e-6)
    found = stage.constants_of(how, 1, dataset, np.arange(3))
    np.testing.assert_allclose(np.exp(found.offsets), [1, 1 / 3], rtol=1e-6)


def test_stage_run_is_normalised_by_its_own_training_split(tiny, tmp_path):
    changes = {"data.normalise": "dataset", "train.balance": True}
    config = parsed(
        **{f"stages.target.{name}": value for name, value in changes.items()},
        **{"model.name": tiny, "model.image_size": 8, "study.arms": ("scratch",)},
    )
    made = datasets()
    [run] = runs_of(config)
    found = stage.prepare(stage.Materials(config, made, tmp_path), run).constants
    target, train = made["target"], split_of(config, made["target"], run).train
    unit = target.images[train] / 255
    np.testing.assert_allclose(found.mean, [unit.mean()], rtol=1e-5)
    np.testing.assert_allclose(found.deviation, [unit.std()], rtol=1e-5)
    counts = [np.sum(target.labels[train] == k) for k in range(3)]
    np.testing.assert_allclose(
        np.exp(found.offsets), np.array(counts) / len(train), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("before", "after", "notes"),
    [
        ("fixed", "fixed", ()),
        ("patch", "patch", ()),
        (
            "fixed",
            "patch",
            ("normalisation: 'texture' used 'fixed', 'target' uses 'patch'",),
        ),
        (
            "patch",
            "dataset",
            (
                "normalisation: 'texture' used 'patch', 'target' uses 'dataset' with its "
                "own mean and standard deviation",
            ),
        ),
        # The same setting, but other numbers.
        (
            "dataset",
            "dataset",
            (
                "normalisation: 'texture' used 'dataset', 'target' uses 'dataset' with "
                "its own mean and standard deviation",
            ),
        ),
    ],
)
def test_report_of_a_transfer_notes_another_normalisation(
    monkeypatch, tmp_path, tiny, before, after, notes
):
    config = parsed(
        **{
            "stages.texture.data.normalise": before,
            "stages.target.data.normalise": after,
            "study.arms": ("texture",),
            "model.name": tiny,
            "model.image_size": 8,
        }
    )
    texture = models.init(models.build(tiny, num_classes=3), jax.random.key(5), 8, 1)
    monkeypatch.setattr(checkpoint, "load_variables", lambda folder: texture)
    run = runs_of(config)[-1]
    prepared = stage.prepare(stage.Materials(config, datasets(), tmp_path), run)
    assert prepared.report.notes == notes
    lines = prepared.report.summary().splitlines()[1:]
    assert lines == [f"note: {note}" for note in notes]
    np.testing.assert_array_equal(
        prepared.variables["params"]["fc6"]["kernel"],
        texture["params"]["fc6"]["kernel"],
    )


def test_target_run_leaves_what_its_training_images_look_like(tmp_path, tiny_study):
    tiny_study(tmp_path, **ONE, **{"study.arms": ("scratch",)})
    config = parsed(**{**TINY, **ONE, "study.arms": ("scratch",)})
    [run] = runs_of(config)
    dataset = tiny_study.made["target"]
    folder = stage.Materials(config, tiny_study.made, tmp_path).folder(run)
    found = novelty.load(folder, run.hash)
    # By hand: the images as the network takes them, and what it sees of them.
    train = split_of(config, dataset, run).train
    with np.load(folder / artifacts.TRAINED) as saved:
        assert set(saved["groups"]) == set(dataset.groups[train])
    images = (dataset.images[train] / 255 - 0.5) / 0.25
    module = steps.build_model(config.model, dataset.num_classes, None)
    variables = checkpoint.load_variables(folder / "variables")
    _, taps = module.apply(variables, images.astype(np.float32), train=False)
    features = np.asarray(models.descriptor(taps))
    expected = novelty.reference(features, dataset.groups[train])
    assert found.groups == len(np.unique(dataset.groups[train])) >= 3
    assert len(found.features) == len(train)
    np.testing.assert_allclose(found.features, expected.features, atol=0.01)
    assert found.threshold == pytest.approx(expected.threshold, rel=0.01)
