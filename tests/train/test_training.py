"""Steps of training and evaluation against steps by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from basics import make_dataset
from small_training import constants, fresh, step_settings, train

from twostage_jax.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig
from twostage_jax.train import augment, evaluate, feed, parallel, steps
from twostage_jax.train import parallel as placements


def test_step_is_the_gradient_step_by_hand(tiny):
    settings, dataset = step_settings(), make_dataset()
    variables = fresh(settings)
    indices = np.arange(12, dtype=np.int32).reshape(1, 12)
    # Classes make up 1/2, 1/4 and 1/4 of the training examples.
    frequencies = np.array([0.5, 0.25, 0.25], np.float32)
    state, metrics = train(
        settings,
        variables,
        dataset,
        indices,
        constants()._replace(offsets=np.log(frequencies)),
    )
    module = steps.build_model(settings.model, 3, None)
    images = (dataset.images[:12].astype(np.float32) / 255 - 0.5) / 0.25

    def loss(params):
        (logits, _), _ = module.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        # Bayes' rule from equally frequent classes to those of the training examples.
        joint = frequencies * jax.nn.softmax(logits)
        found = joint / joint.sum(1, keepdims=True)
        return -jnp.log(found[np.arange(12), dataset.labels[:12]]).mean()

    value, gradient = jax.value_and_grad(loss)(variables["params"])
    by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)
    np.testing.assert_allclose(metrics["loss"], [value], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, by_hand
    )


def test_label_smoothing_by_hand(tiny):
    dataset = make_dataset(count=3)
    variables = fresh(step_settings())
    indices = np.arange(3, dtype=np.int32).reshape(1, 3)
    _, plain = train(step_settings(), variables, dataset, indices)
    _, smooth = train(step_settings(label_smoothing=0.3), variables, dataset, indices)
    module = steps.build_model(step_settings().model, 3, None)
    images = (dataset.images.astype(np.float32) / 255 - 0.5) / 0.25
    (logits, _), _ = module.apply(variables, images, train=True, mutable=True)
    logs = jax.nn.log_softmax(logits)
    right = logs[np.arange(3), dataset.labels]
    np.testing.assert_allclose(plain["loss"], [-right.mean()], rtol=1e-5)
    expected = -(0.7 * right + 0.3 * logs.mean(1)).mean()
    np.testing.assert_allclose(smooth["loss"], [expected], rtol=1e-5)


def test_frozen_layer_stays_bit_identical_statistics_included(tiny):
    freeze = ("conv1/.*", "norm1/.*")
    settings = step_settings(optim=OptimConfig(freeze=freeze, weight_decay=0.1))
    variables = jax.tree.map(np.asarray, fresh(settings))
    indices = np.arange(24, dtype=np.int32).reshape(2, 12)
    state, _ = train(settings, variables, make_dataset(), indices)
    after = {"params": state.params, "batch_stats": state.batch_stats}
    for collection, layer in (
        ("params", "conv1"),
        ("params", "norm1"),
        ("batch_stats", "norm1"),
    ):
        for name, before in variables[collection][layer].items():
            assert after[collection][layer][name].tobytes() == before.tobytes()
    assert (
        after["params"]["head"]["kernel"] != variables["params"]["head"]["kernel"]
    ).any()


def test_padded_evaluation_equals_unpadded(tiny):
    settings, dataset = step_settings(), make_dataset(count=10)
    variables = fresh(settings)
    placement = placements.alone()
    source = feed.feed(dataset, placement.devices)
    programs = parallel.programs(settings, placement.axis_name)

    def probabilities(batch):
        batches = feed.eval_batches([np.arange(10)], batch)
        parts = [
            placement.joined(
                programs.evaluate(
                    placement.put([variables]),
                    source.data,
                    placement.arrange(batches[:, i]),
                    placement.put([constants()]),
                    np.zeros(3, np.int32),
                )
            )
            for i in range(batches.shape[1])
        ]
        return np.concatenate(parts, 1)[0, :10]

    np.testing.assert_allclose(probabilities(4), probabilities(10), atol=1e-6)
    module = steps.build_model(settings.model, 3, None)
    images = (dataset.images.astype(np.float32) / 255 - 0.5) / 0.25
    logits, _ = module.apply(variables, images, train=False)
    np.testing.assert_allclose(probabilities(4), jax.nn.softmax(logits), atol=1e-6)


def test_predictions_are_means_over_orientations_of_windows_that_cover_the_image(tiny):
    settings, dataset = step_settings(), make_dataset(count=10, size=11)
    averaging = AugmentConfig(flip="dihedral", average=True)
    variables, placement = fresh(settings), placements.alone()
    averaged = evaluate.predict(
        parallel.programs(settings, placement.axis_name),
        feed.feed(dataset, placement.devices),
        placement,
        placement.put([constants()]),
        placement.put([variables]),
        [np.arange(10)],
        augment.views(averaging, 11, 11, 8),
    )[0]
    module = steps.build_model(settings.model, 3, None)
    images = (dataset.images.astype(np.float32) / 255 - 0.5) / 0.25
    by_hand = np.mean(
        [
            jax.nn.softmax(module.apply(variables, turned, train=False)[0])
            for top in (0, 3)
            for left in (0, 3)
            for window in [images[:, top : top + 8, left : left + 8]]
            for flipped in (window, window[:, :, ::-1])
            for turned in (np.rot90(flipped, k, (1, 2)) for k in range(4))
        ],
        axis=0,
    )
    np.testing.assert_allclose(averaged, by_hand, atol=1e-6)
    whole, _ = evaluate.applied(
        settings.model, DataConfig("folder", normalise="fixed"), constants().mean,
        constants().deviation, variables, dataset.images, 3, averaging,
    )  # fmt: skip
    np.testing.assert_allclose(whole, by_hand, atol=1e-6)


def test_statistics_stay_while_the_head_alone_is_trained(tiny):
    """Linear probing uses the features as they were transferred."""
    settings = step_settings(optim=OptimConfig(learning_rate=0.1, head_steps=2))
    before, dataset = fresh(settings), make_dataset()
    order = np.arange(36, dtype=np.int32).reshape(3, 12)
    held, _ = train(settings, before, dataset, order[:2])
    jax.tree.map(np.testing.assert_array_equal, held.batch_stats, before["batch_stats"])
    moved, _ = train(settings, before, dataset, order)
    for old, new in zip(
        jax.tree.leaves(before["batch_stats"]), jax.tree.leaves(moved.batch_stats),
        strict=True,
    ):  # fmt: skip
        assert np.abs(new - old).max() > 0


def test_a_step_in_bfloat16_keeps_parameters_in_float32_and_is_near_theirs():
    dataset, order = make_dataset(), np.arange(12, dtype=np.int32).reshape(1, 12)
    model = ModelConfig("caffenet_small", image_size=8, dropout=0.0)
    start = fresh(step_settings(model=model))
    moved = {}
    for dtype in ("float32", "bfloat16"):
        settings = step_settings(model=dataclasses.replace(model, dtype=dtype))
        state, metrics = train(settings, start, dataset, order)
        change = jax.tree.map(np.subtract, state.params, start["params"])
        moved[dtype] = change, metrics["loss"]
        leaves = jax.tree.leaves(state.params)
        assert {leaf.dtype for leaf in leaves} == {jnp.float32.dtype}
    (ours, loss), (theirs, other) = moved["float32"], moved["bfloat16"]
    np.testing.assert_allclose(loss, other, rtol=0.02)
    assert (loss != other).all()  # It was computed otherwise.
    flat = [
        np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (ours, theirs)
    ]
    # Eight bits of mantissa: the step has the same direction.
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.98
