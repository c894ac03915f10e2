"""Compares the moments that an orderless head reads, on two small pilot sets.

    python -m experiments.head_pilot DATA [materials|phantoms]

trains the five convolutions of `caffenet_small` from scratch, with heads that differ, on

  materials  168 images of KTH-TIPS (DATA/kth_tips_gray), the central 64 pixels; images of
             unseen scales are the test
  phantoms   about 200 patches of 61 pixels from 36 phantom patients, tested by patient

and prints balanced accuracies in per cent, means over two seeds of two folds, next to
those of texture descriptors and logistic regression on the same pixels. It has a training
loop of its own, since the package has only the head that was chosen: see heads.md.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

from twostage_jax.baselines import descriptors, linear
from twostage_jax.data.synthetic import phantoms
from twostage_jax.models import layers
from twostage_jax.train import augment

WINDOW = (-600.0, 1500.0)
SEEDS, FOLDS, BATCH, MATERIALS = (100, 101), 2, 64, 168
Set = tuple[np.ndarray, np.ndarray, np.ndarray]


class Convolutions(nn.Module):
    """`caffenet_small` with an orderless head on `read`, with or without BatchNorm."""

    classes: int
    read: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        maps = {}
        plan = (
            (48, 5, 2, 2, 1),
            (96, 5, 1, 2, 2),
            (128, 3, 1, 1, 1),
            (128, 3, 1, 1, 2),
        )
        for k, (width, side, strides, pad, groups) in enumerate(
            (*plan, (96, 3, 1, 1, 2)), start=1
        ):
            conv = layers.Conv(width, side, strides, pad, groups, name=f"conv{k}")
            x = maps[k] = layers.relu(conv(x))
            if k < 3:
                x = layers.local_response_norm(layers.max_pool(x))
        x = jnp.concatenate([layers.moments(maps[k]) for k in self.read], axis=-1)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return layers.head(self.classes)(x)


def materials(data: Path) -> Set:
    """Returns images `[N, 64, 64, 1]` in [0, 1], labels, and scales as groups."""
    images, labels, scales = [], [], []
    for label, folder in enumerate(sorted((data / "kth_tips_gray").iterdir())):
        for file in sorted(folder.glob("*.png")):
            pixels = np.asarray(Image.open(file).convert("L"), np.float32) / 255
            images.append(augment.centre_crop(pixels[..., None], 64))
            labels.append(label)
            scales.append(int(re.search(r"scale_(\d+)", file.name)[1]))
    return np.stack(images), np.array(labels), np.array(scales)


def phantom_patches() -> Set:
    """Returns patches `[N, 61, 61, 1]` in [0, 1], labels, and patients."""
    recipe = phantoms.recipe(
        size=61, patients=36, slices=2, stride=24, per_class=3, seed=77
    )
    made = [example for task in recipe.tasks for example in recipe.make(task)]
    images = np.stack([np.asarray(augment.to_unit(e.image, WINDOW, 1)) for e in made])
    labels = np.array([example.label for example in made])
    patients = np.unique([example.group for example in made], return_inverse=True)[1]
    frequent = np.bincount(labels)[labels] >= 10
    labels = np.unique(labels[frequent], return_inverse=True)[1]
    return images[frequent], labels, patients[frequent]


def fit(
    images: np.ndarray, labels: np.ndarray, network: nn.Module, crop: int, steps: int,
    seed: int,
) -> Callable[[np.ndarray], jax.Array]:  # fmt: skip
    """Trains a network on random crops; returns a function from images to classes."""
    key = jax.random.key(seed)
    variables = network.init(key, jnp.zeros((1, crop, crop, 1)), train=False)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.002, 20, steps)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=5e-4, mask=_kernels),
    )
    counts = np.bincount(labels, minlength=network.classes)
    weights = jnp.asarray(1 / counts, jnp.float32)
    margin = ((0, 0), (2, 2), (2, 2), (0, 0))
    padded = jnp.asarray(np.pad(images, margin, mode="reflect"))

    def changed(key: jax.Array, image: jax.Array) -> jax.Array:
        place, flip = jax.random.split(key)
        corner = jax.random.randint(place, (2,), 0, len(image) - crop + 1)
        image = jax.lax.dynamic_slice(image, (*corner, 0), (crop, crop, 1))
        flips = jax.random.bernoulli(flip, shape=(3,))
        image = jnp.where(flips[0], image[::-1], image)
        image = jnp.where(flips[1], image[:, ::-1], image)
        return jnp.where(flips[2], image.swapaxes(0, 1), image)

    @jax.jit
    def step(variables, state, picked, targets, key):
        batch = jax.vmap(changed)(jax.random.split(key, len(picked)), padded[picked])

        def loss(params):
            logits, moved = network.apply(
                {**variables, "params": params}, (batch - 0.5) / 0.25, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            share = weights[targets]
            return (share * losses).sum() / share.sum(), moved

        gradients, moved = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimiser.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {**moved, "params": params}, state

    state = optimiser.init(variables["params"])
    rng = np.random.default_rng(seed)
    for number in range(steps):
        picked = rng.choice(len(labels), min(BATCH, len(labels)), replace=False)
        drawn = jax.random.fold_in(key, number + 1)
        variables, state = step(variables, state, picked, labels[picked], drawn)
    apply = jax.jit(functools.partial(network.apply, variables, train=False))
    return lambda seen: apply((seen - 0.5) / 0.25).argmax(-1)


def _kernels(params: dict) -> dict:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def splits(kind: str, labels: np.ndarray, groups: np.ndarray) -> Iterator[tuple]:
    for seed in SEEDS:
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (train, test) in enumerate(folds.split(labels, labels, groups)):
            if kind == "materials":
                rng = np.random.default_rng(seed)
                train = np.sort(rng.permutation(train)[:MATERIALS])
            yield 10 * seed + fold, train, test


def main(data: Path, kinds: list[str]) -> None:
    heads = [
        # (maps that the head reads, BatchNorm, side of the crops, steps)
        ((3, 4, 5), False, 32, 300),
        ((3, 4, 5), True, 32, 300),
        ((1, 2, 3, 4, 5), True, 32, 300),
        ((1, 2, 3, 4, 5), True, 0, 300),
        ((1, 2, 3, 4, 5), True, 0, 150),
    ]
    for kind in kinds:
        made = materials(data) if kind == "materials" else phantom_patches()
        images, labels, groups = made
        places = list(splits(kind, labels, groups))
        described = {"descriptors": descriptors.describe(images)}
        found = []
        for _, train, test in places:
            part = {name: values[train] for name, values in described.items()}
            fitted = linear.fit(part, labels[train], groups[train])
            chances = fitted.probabilities(described, labels.max() + 1)
            found.append(balanced_accuracy_score(labels[test], chances[test].argmax(1)))
        print(f"{kind}: descriptors {100 * np.mean(found):.1f}", flush=True)
        for read, norm, crop, steps in heads:
            side = crop or images.shape[1]
            network = Convolutions(int(labels.max()) + 1, read, norm)
            found = []
            for seed, train, test in places:
                classify = fit(images[train], labels[train], network, side, steps, seed)
                seen = augment.centre_crop(images[test], side)
                found.append(balanced_accuracy_score(labels[test], classify(seen)))
            print(
                f"{kind}: conv{read}, {'BatchNorm' if norm else 'as they are'}, {side} "
                f"pixels, {steps} steps: {100 * np.mean(found):.1f} "
                f"({', '.join(f'{100 * x:.1f}' for x in found)})",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["materials", "phantoms"])
