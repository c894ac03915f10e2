"""Exports the weights of a finished stage run, with a model card next to them.

    python -m twostage_jax.export --run=runs/two_stage --to=model.safetensors
    python -m twostage_jax.export --run=runs/two_stage --arm=scratch --seed=1 --to=model.npz
    python -m twostage_jax.export --run=runs/two_stage/stages/texture-0123456789ab \\
        --to=texture.safetensors

The suffix chooses the format:

    .safetensors  the names of timm or torchvision, if these have the network, so that
                  `load_state_dict` accepts the file; otherwise paths such as
                  'params/conv1/kernel'. The header says how to use the weights: classes,
                  channels, image size, normalisation, window in HU, network settings
    .npz          paths, for every network; the same information as JSON in 'metadata'
    .onnx         the network itself, for scaled images `[N, H, W, C]` of any number, with
                  the same information as metadata; needs `pip install -e '.[onnx]'`

`inspect --source` and a network with the same settings read the first two back exactly. A
study with a stage imported from such a file (`config.stages.X.weights`) takes the scale
of images, the class names and the licence from it. The card, `model.safetensors.md`,
describes the data of every stage, the scores with intervals, how to load the weights and
scale images, and the limits of the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage_jax import __version__, cli
from twostage_jax.errors import UserError

if TYPE_CHECKING:
    from twostage_jax.study.artifacts import Trained

ONNX = ".onnx"


def export(
    *,
    run: str,
    to: str,
    arm: str = "",
    seed: int | None = None,
    fraction: float | None = None,
    fold: int | None = None,
    licence: str = "",
) -> None:
    """Writes the weights and the card of a stage run.

    Args:
      run: Workdir of a study, or folder of a stage run.
      to: Output file, .safetensors, .npz or .onnx. The card is this name with .md added.
      arm: Arm of the study; default: two_stage.
      seed: Seed; default: the first.
      fraction: Fraction of the target training set; default: the largest.
      fold: Fold; default: the first.
      licence: Licence of the exported weights, as an identifier of Hugging Face, such as
        cc-by-nc-4.0; default: not stated.

    Raises:
      UserError: The run does not exist, its files are damaged, or the format is unknown.
    """
    # Imported after jax is set up, and not for --help.
    from twostage_jax import io
    from twostage_jax.models import onnx_file, pretrained
    from twostage_jax.report import card
    from twostage_jax.study import artifacts
    from twostage_jax.train import checkpoint, steps

    path = Path(to)
    if path.suffix not in (*pretrained.WRITERS, ONNX):
        suffixes = " or ".join((*pretrained.WRITERS, ONNX))
        raise UserError.flag("--to", to, f"the suffix must be {suffixes}.")
    found = artifacts.find(Path(run), arm, seed=seed, fraction=fraction, fold=fold)
    if found.source == "weights":
        raise UserError.at(
            found.folder,
            "this stage was imported, not trained: its weights are the file "
            f"{found.data}.",
        )
    module = steps.build_model(found.model, len(found.class_names), None)
    variables = checkpoint.load_variables(found.folder / "variables")
    channels = found.model.channels
    pytorch = module.pytorch(channels) if path.suffix == ".safetensors" else ""
    told = metadata(found) | ({"license": licence} if licence else {})
    page = card.page(
        found.folder, found.arm, path.name, pytorch, licence, told["spacing_mm"]
    )
    if path.suffix == ONNX:
        onnx_file.write(path, variables, module, found.model.image_size, channels, told)
    else:
        pretrained.write(path, variables, module, channels, told)
    described = path.with_name(f"{path.name}.md")
    io.write_text(described, page)
    print(f"{found}\nWeights: {path}\nCard: {described}")


def metadata(run: "Trained") -> dict[str, Any]:
    """Returns the header of an export: JSON values by name."""
    from twostage_jax.config import as_json
    from twostage_jax.report import card

    try:
        spacing = run.spacing() or 0.0
    except ValueError:
        spacing = None
    return {
        "software": f"twostage_jax {__version__}",
        "run": run.hash,
        "arm": run.arm,
        "model": as_json(run.model),
        "classes": list(run.class_names),
        "channels": run.model.channels,
        "image_size": run.model.image_size,
        "normalise": run.normalise,
        "mean": list(run.mean),
        "deviation": list(run.deviation),
        "window_hu": list(run.window) if run.in_hu else None,
        # mm per pixel of CT slices, 0 = as scanned; null = unknown, or other images.
        "spacing_mm": spacing,
        "started_from": card.origins(run.folder),
        "notice": "; ".join(run.notices),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(export, argv)


if __name__ == "__main__":
    main()
