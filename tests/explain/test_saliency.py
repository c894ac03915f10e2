"""Saliency maps, against networks whose maps are known, NumPy loops, and Captum."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import network_by_hand
import numpy as np
import pytest
import scipy.ndimage
from network_by_hand import random_params

from twostage_jax import models
from twostage_jax.explain import saliency
from twostage_jax.explain.saliency import reconstruct
from twostage_jax.models import CaffeNet

STEM = (5, 2, 2)


class Weighted(models.Network):
    """Logit k is the sum over pixels of weights_k * image ** power."""

    power: int = 1

    @nn.compact
    def __call__(self, images, *, train):
        shape = (*images.shape[1:], 3)
        weights = self.param("weights", nn.initializers.normal(1), shape)
        logits = jnp.einsum("nhwc,hwck->nk", images**self.power, weights)
        return logits, {"map": images, "head": logits}


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 8, 2, 3)).astype(np.float32)
    images = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    labels = np.array([2, 0, 1])
    chosen = np.moveaxis(weights[..., labels], -1, 0)
    return {"params": {"weights": weights}}, images, labels, chosen


def test_methods_on_a_linear_network_are_its_weights(example):
    variables, images, labels, chosen = example
    call = Weighted(3), variables, images, labels
    product = (chosen * images).sum(-1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(saliency.smoothgrad(*call), np.abs(chosen).max(-1))
    close(saliency.SALIENCY["salinet"](*call), np.abs(chosen).max(-1))
    close(saliency.gradient_x_input(*call), product)
    close(saliency.integrated_gradients(*call), product)


def test_integrated_gradients_of_a_square_share_it_among_the_pixels(example):
    variables, images, labels, chosen = example
    found = saliency.integrated_gradients(
        Weighted(3, power=2), variables, images, labels
    )
    expected = (chosen * images**2).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_smoothgrad_of_a_square_is_the_gradient_at_the_mean_noisy_image(example):
    variables, images, labels, chosen = example
    found = saliency.smoothgrad(Weighted(3, power=2), variables, images, labels)
    noise = np.mean(
        [np.random.default_rng(i).standard_normal((8, 8, 2)) for i in range(25)], 0
    )
    span = np.array([0.15 * (image.max() - image.min()) for image in images])
    noisy = images + span.reshape(-1, 1, 1, 1) * noise
    expected = np.abs(2 * chosen * noisy).max(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    alone = saliency.smoothgrad(
        Weighted(3, power=2), variables, images[1:2], labels[1:2]
    )
    np.testing.assert_allclose(alone, found[1:2], rtol=1e-4, atol=1e-5)


def test_occlusion_is_the_mean_loss_of_the_squares_over_a_pixel(example):
    variables, images, labels, chosen = example
    found = saliency.occlusion(Weighted(3), variables, images, labels)
    lost = (chosen * images).sum(-1)
    total, count = np.zeros((3, 8, 8)), np.zeros((8, 8))
    for i, j in np.ndindex(7, 7):  # Squares of 2 pixels.
        square = lost[:, i : i + 2, j : j + 2].sum((1, 2))
        total[:, i : i + 2, j : j + 2] += square.reshape(-1, 1, 1)
        count[i : i + 2, j : j + 2] += 1
    np.testing.assert_allclose(found, total / count, rtol=1e-3, atol=1e-4)


def test_occlusion_covers_every_pixel_where_squares_do_not_divide_the_image():
    """Equal weights: a square of 4 costs 16 anywhere, and all pixels are covered."""
    variables = {"params": {"weights": np.ones((17, 7, 1, 3), np.float32)}}
    images = np.ones((1, 17, 7, 1), np.float32)
    found = saliency.occlusion(Weighted(3), variables, images, np.array([0]))
    np.testing.assert_allclose(found, np.full((1, 17, 7), 16), rtol=1e-4)


@pytest.fixture(scope="module")
def tiny_caffenet():
    return network_by_hand.tiny_caffenet(seed=4)


@pytest.mark.parametrize("plus", [False, True])
def test_grad_cam_is_its_definition(tiny_caffenet, plus, monkeypatch):
    module, variables, images, by_hand = tiny_caffenet
    assert saliency.last_map(module, variables, images) == "relu5"
    # Of an earlier map, which is larger than a few pixels.
    monkeypatch.setattr(saliency, "last_map", lambda *_: "relu2")
    # Signals small enough for the cubes of Grad-CAM++.
    images, labels = images / 60, np.array([1, 2])
    method = saliency.grad_cam_pp if plus else saliency.grad_cam
    found = method(module, variables, images, labels)
    for image, label, heat in zip(images, labels, found, strict=True):
        value = by_hand.forward(image)[0]["relu2"]
        start = np.eye(3)[label]
        g = by_hand.backward(image, "head", start, "salinet", until="relu2")
        weights = g.mean((0, 1))
        if plus:
            below = 2 * g**2 + value.sum((0, 1)) * g**3
            alpha = np.divide(g**2, below, out=np.zeros_like(g), where=below != 0)
            weights = (alpha * np.maximum(g, 0)).sum((0, 1))
        small = np.maximum((value * weights).sum(-1), 0)
        large = scipy.ndimage.zoom(
            small, 18 / np.array(small.shape), order=1, mode="nearest", grid_mode=True
        )
        assert large.max() > 0
        np.testing.assert_allclose(heat, large, rtol=1e-2, atol=1e-4 * large.max())


@pytest.fixture(scope="module")
def in_torch():
    """A small CaffeNet, its twin in PyTorch with the same weights, and two images."""
    needed = "compares with Captum: pip install -e '.[test,test-torch]'"
    torch = pytest.importorskip("torch", reason=needed)
    pytest.importorskip("captum", reason=needed)
    module = CaffeNet(num_classes=3, widths=(6, 6, 4, 4, 4), hidden=(5, 5), stem=STEM)
    params = random_params(module, 32, 2)
    convs = {1: (2, 2, 1), 2: (1, 2, 2), 3: (1, 1, 1), 4: (1, 1, 2), 5: (1, 1, 2)}
    steps = []
    for k, (stride, pad, groups) in convs.items():
        kernel = np.transpose(params[f"conv{k}"]["kernel"], (3, 2, 0, 1))
        out, per_group, side, _ = kernel.shape
        layer = torch.nn.Conv2d(
            per_group * groups, out, side, stride, pad, groups=groups
        )
        _fill(layer, kernel, params[f"conv{k}"]["bias"])
        steps += [layer, torch.nn.ReLU()]
        if k in (1, 2, 5):
            steps.append(torch.nn.MaxPool2d(3, 2, ceil_mode=True))
        if k in (1, 2):
            steps.append(torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1))
    steps.append(torch.nn.Flatten())
    for name in ("fc6", "fc7", "head"):
        kernel = params[name]["kernel"]
        if name == "fc6":
            # Rows in the order of [channel, row, column].
            side = int(np.sqrt(len(kernel) // 4))
            kernel = kernel.reshape(side, side, 4, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(4 * side**2, -1)
        layer = torch.nn.Linear(*kernel.shape)
        _fill(layer, kernel.T, params[name]["bias"])
        steps += [layer, torch.nn.ReLU()] if name != "head" else [layer]
    twin = torch.nn.Sequential(*steps).eval()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 2)).astype(np.float32)
    given = torch.tensor(images.transpose(0, 3, 1, 2))
    logits = jax.jit(functools.partial(module.apply, train=False))(
        {"params": params}, images
    )[0]
    np.testing.assert_allclose(twin(given).detach(), logits, rtol=1e-3, atol=1e-4)
    return module, {"params": params}, images, twin, given


def _fill(layer, weight, bias):
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.tensor(bias))


# Captum's deconvolution has the derivative of the normalisation, which is the identity
# within 1e-3 for signals as small as these.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "theirs"),
    [("guided", "GuidedBackprop"), ("deconvnet", "Deconvolution")],
)
def test_backward_methods_agree_with_captum(in_torch, method, theirs):
    from captum import attr

    module, variables, images, twin, given = in_torch
    found = reconstruct(
        module, variables, images, "head", method=method, channels=np.array([0, 2])
    )
    expected = getattr(attr, theirs)(twin).attribute(given, target=[0, 2])
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max()
    )


def test_integrated_gradients_agree_with_captum(in_torch):
    from captum.attr import IntegratedGradients

    module, variables, images, twin, given = in_torch
    found = saliency.integrated_gradients(module, variables, images, np.array([0, 2]))
    expected = IntegratedGradients(twin).attribute(
        given, target=[0, 2], n_steps=saliency.PATH_STEPS, method="riemann_middle"
    )
    expected = expected.detach().numpy().sum(1)
    np.testing.assert_allclose(
        found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max()
    )
