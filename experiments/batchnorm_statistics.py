"""Fine-tuning with BatchNorm: keep the statistics of the weights, or estimate them again?

    python experiments/imagenet_weights.py WEIGHTS
    python experiments/batchnorm_statistics.py DATA WEIGHTS/lite0.safetensors \
        --out=experiments/batchnorm_statistics.json

fine-tunes EfficientNet-Lite0 from ImageNet on 180 images of KTH-TIPS (two of each material
and scale), 48 pixels of each, tested at scales that training has not seen: two seeds of two
folds. Every run is trained with and without `optim.freeze` of the statistics,
at two learning rates. DATA holds `kth_tips_gray/`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from twostage_jax import io, runtime
from twostage_jax.config import config_file, parse
from twostage_jax.study import run as study

pretrained = config_file(Path(__file__).parent.parent / "configs" / "pretrained.py")
KEPT = (r"(?!head).*/(mean|var)",)
RATES = (0.0005, 0.002)
COMMAND = "python experiments/batchnorm_statistics.py DATA WEIGHTS --out=FILE"


def images(data: Path, folder: Path) -> None:
    """Links two images of each material and scale into a folder."""
    for file in sorted(data.glob("kth_tips_gray/*/*_im_[15]_grey.png")):
        link = folder / file.parent.name / file.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file.resolve())


def settings(folder: Path, weights: Path, steps: int) -> ConfigDict:
    """Returns the settings of all runs."""
    config = pretrained.get_config()
    config.name = "batchnorm_statistics"
    config.model.name = "efficientnet_lite0"
    config.model.image_size = 48
    config.stages.natural.weights = str(weights)
    target = config.stages.target
    target.data.path = str(folder)
    target.data.kind = "texture"
    target.data.size = 0  # 48 pixels of the whole image
    target.data.group_regex = r"scale_(\d+)"
    target.train.steps = steps
    target.train.epochs = 0
    target.train.batch_size = 32
    target.optim.warmup_steps = 5
    target.train.eval_every = target.train.save_every = steps
    config.study.arms = ("natural",)
    config.study.primary = ("natural", "scratch", "balanced_accuracy")
    config.study.seeds = (0, 1)
    config.study.folds = 2
    config.study.grid = (("optim.freeze", ((), KEPT)), ("optim.learning_rate", RATES))
    config.study.baselines = ()
    return config


def scores(workdir: Path) -> list[dict[str, Any]]:
    """Returns the score of each target stage run on its test images."""
    found = []
    for path in sorted(workdir.glob("stages/target-*/lineage.json")):
        lineage = json.loads(path.read_text())
        optim = lineage["settings"]["optim"]
        row = {name: lineage[name] for name in ("seed", "fold")}
        row["statistics"] = "kept" if optim["freeze"] else "estimated again"
        row["learning_rate"] = optim["learning_rate"]
        row["examples"] = lineage["data"]["examples"]
        row["balanced_accuracy"] = lineage["scores"]["balanced_accuracy"]
        found.append(row)
    return sorted(
        found,
        key=lambda row: [
            row[k] for k in ("statistics", "learning_rate", "seed", "fold")
        ],
    )


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and standard deviation over seeds and folds, in per cent."""
    places = dict.fromkeys((row["statistics"], row["learning_rate"]) for row in rows)
    found = []
    for place in places:
        values = [
            100 * row["balanced_accuracy"]
            for row in rows
            if (row["statistics"], row["learning_rate"]) == place
        ]
        found.append(
            {
                "statistics": place[0],
                "learning_rate": place[1],
                "mean": round(statistics.fmean(values), 1),
                "deviation": round(statistics.stdev(values), 1),
            }
        )
    return found


def main() -> None:
    """Runs the experiment; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "images").mkdir()
        images(flags.data, work / "images")
        config = settings(work / "images", flags.weights, flags.steps)
        with study.trained(parse(config), work / "run", work / "data"):
            rows = scores(work / "run")
    table = summary(rows)
    numbers = {
        "command": f"{COMMAND} --steps={flags.steps}",
        "versions": runtime.versions(),
        "summary": table,
        "rows": rows,
    }
    io.write_json(flags.out, numbers)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
