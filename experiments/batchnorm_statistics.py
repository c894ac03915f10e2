"""Compares two ways to fine-tune BatchNorm: keep the statistics, or estimate them again.

    python experiments/imagenet_weights.py WEIGHTS
    python experiments/batchnorm_statistics.py DATA WEIGHTS/lite0.safetensors --seeds=1 \
        --workdir=WORKDIR --out=experiments/batchnorm_statistics.json

fine-tunes EfficientNet-Lite0 from ImageNet on 180 images of KTH-TIPS (two of each material
and scale), 48 pixels of each, tested at scales that training has not seen, in two folds.
Every run is trained with and without `optim.freeze` of the statistics. DATA holds
`kth_tips_gray/`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from twostage_jax import io, runtime
from twostage_jax.config import config_file, parse
from twostage_jax.study import run as study

pretrained = config_file(Path(__file__).parent.parent / "configs" / "pretrained.py")
KEPT = (r"(?!head).*/(mean|var)",)
COMMAND = "python experiments/batchnorm_statistics.py DATA WEIGHTS/lite0.safetensors"


def images(data: Path, folder: Path) -> None:
    """Links two images of each material and scale into a folder."""
    for file in sorted(data.glob("kth_tips_gray/*/*_im_[15]_grey.png")):
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())


def settings(folder: Path, weights: Path, steps: int, seeds: int) -> ConfigDict:
    """Returns the settings of all runs."""
    config = pretrained.get_config()
    config.name = "batchnorm_statistics"
    config.model.name = "efficientnet_lite0"
    config.model.image_size = 48
    config.stages.natural.weights = str(weights)
    target = config.stages.target
    target.data.path = str(folder)
    target.data.kind = "texture"
    target.data.size = 0  # 48 pixels of the whole image.
    target.data.group_regex = r"scale_(\d+)"
    target.train.steps = steps
    target.train.epochs = 0
    target.train.batch_size = 32
    target.optim.warmup_steps = 5
    target.train.eval_every = target.train.save_every = steps
    config.study.arms = ("natural",)
    config.study.primary = ("natural", "scratch", "balanced_accuracy")
    config.study.seeds = tuple(range(seeds))
    config.study.folds = 2
    config.study.grid = (("optim.freeze", ((), KEPT)),)
    config.study.baselines = ()
    return config


def scores(workdir: Path) -> list[dict[str, Any]]:
    """Returns the scores of each target stage run, on its test images."""
    found = []
    for path in sorted(workdir.glob("stages/target-*/lineage.json")):
        lineage = json.loads(path.read_text())
        kept = bool(lineage["settings"]["optim"]["freeze"])
        found.append(
            {
                "statistics": "kept" if kept else "estimated again",
                "seed": lineage["seed"],
                "fold": lineage["fold"],
                "examples": lineage["data"]["examples"],
                "validation": lineage["validation"],
                "scores": lineage["scores"],
                "seconds": lineage["seconds"],
            }
        )
    return sorted(found, key=lambda row: (row["statistics"], row["seed"], row["fold"]))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns balanced accuracy (%): mean and standard deviation over seeds and folds."""
    found = []
    for kind in dict.fromkeys(row["statistics"] for row in rows):
        chosen = [row["scores"] for row in rows if row["statistics"] == kind]
        values = [100 * score["balanced_accuracy"] for score in chosen]
        found.append(
            {
                "statistics": kind,
                "mean": round(statistics.fmean(values), 1),
                "deviation": round(statistics.stdev(values), 1),
            }
        )
    return found


def main() -> None:
    """Trains the missing runs; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    work = flags.workdir
    images(flags.data, work / "images")
    config = settings(work / "images", flags.weights, flags.steps, flags.seeds)
    with study.trained(parse(config), work / "run", work / "data"):
        rows = scores(work / "run")
    table = summary(rows)
    numbers = {
        "command": f"{COMMAND} --steps={flags.steps} --seeds={flags.seeds}",
        "versions": runtime.versions(),
        "summary": table,
        "rows": rows,
    }
    io.write_json(flags.out, numbers)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
