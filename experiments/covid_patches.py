"""Writes the patches of the CT of `imagenet.py` as PNG files, one folder per class.

    python experiments/covid_patches.py DATA

reads DATA/covid_ct and writes DATA/covid_patches_64, with `groups.csv`. As a `folder`, they
can be enlarged, which slices cannot: `imagenet.py:DATA,128` trains on the same patches of
the same patients as `imagenet.py:DATA`, in twice the size.
"""

import csv
import sys
import tempfile
from pathlib import Path

from PIL import Image

from twostage_jax import config
from twostage_jax.data import sources


def main(data: str) -> None:
    """Cuts the patches as `imagenet.py` does, and writes them below `data`."""
    study = config.config_file(Path(__file__).parent / "imagenet.py")
    settings = config.parse(study.get_config(data))
    with tempfile.TemporaryDirectory() as prepared:
        patches = sources.load(
            settings.stages["target"].data, settings.network("target"), Path(prepared)
        )
    root = Path(data) / "covid_patches_64"
    rows = []
    for pixels, label, group, name in zip(
        patches.images, patches.labels, patches.groups, patches.ids, strict=True
    ):
        path = f"{patches.class_names[label]}/{name.replace('/', '_')}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(root / path)
        rows.append((path, group))
    with (root / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "group"), *rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
