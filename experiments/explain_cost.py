"""Measures the time of every saliency method.

    python experiments/explain_cost.py --out=experiments/explain_cost.md

Every saliency method of `explain/saliency.py` on patches of noise, by caffenet_small with
random parameters: the cost depends on neither. Each method runs twice: the first
run includes compilation. Writes the page, and the numbers as JSON next to it.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import numpy as np
import pages

from twostage_jax import models
from twostage_jax.explain.saliency import SALIENCY

SIZE, CLASSES = 32, 7
TEXT = """# The cost of saliency

    python experiments/explain_cost.py --out=experiments/explain_cost.md

{images} patches of 32 pixels, caffenet_small, {cores} processor cores, {devices},
jax {jax}.

| method | seconds, with compilation | seconds |
|---|--:|--:|
{rows}

All numbers: [explain_cost.json](explain_cost.json).
"""


def measure(count: int) -> dict[str, list[float]]:
    """Returns the seconds of the first and the second call, by method."""
    module = models.build("caffenet_small", num_classes=CLASSES)
    variables = models.init(module, jax.random.key(0), SIZE, 1)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(count, SIZE, SIZE, 1)).astype(np.float32)
    labels = generator.integers(0, CLASSES, count)
    seconds: dict[str, list[float]] = {}
    for name, method in SALIENCY.items():
        seconds[name] = []
        for _ in range(2):
            began = time.perf_counter()
            maps = method(module, variables, images, labels)
            seconds[name].append(round(time.perf_counter() - began, 2))
        if len(maps) != count or not np.isfinite(maps).all():
            raise ValueError(f"{name}: no finite map of each image.")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    args = parser.parse_args()
    seconds = measure(args.images)
    total = [
        round(sum(of_method[i] for of_method in seconds.values()), 1) for i in (0, 1)
    ]
    found = {
        "images": args.images,
        "cores": len(os.sched_getaffinity(0)),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "seconds": seconds,
        "all": total,
    }
    rows = [f"| {name} | {a:.1f} | {b:.1f} |" for name, (a, b) in seconds.items()]
    rows.append(f"| **all** | **{total[0]:.1f}** | **{total[1]:.1f}** |")
    page = TEXT.format(**found, rows="\n".join(rows))
    pages.leave(args.out, found, page)


if __name__ == "__main__":
    main()
