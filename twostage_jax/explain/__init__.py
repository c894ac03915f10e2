"""Shows and measures what the features of each arm respond to.

    python -m twostage_jax.explain --run=runs/two_stage
    python -m twostage_jax.explain --run=runs/two_stage --arms=natural,two_stage \\
        --layers=conv2 --textures=FOLDER

draws, for every arm of a finished study, the patches to which channels respond most,
with their DeSaliNet pictures, the filters of the first layer, and saliency maps with
checks of the methods; measures how the layers respond to edges and textures; and writes
`explain.json`, `explain.md` and `figures/` into WORKDIR/explain.
"""

from collections.abc import Sequence
from pathlib import Path

from twostage_jax import cli
from twostage_jax.errors import UserError, require


def explain(
    *,
    run: str,
    out: str = "",
    arms: Sequence[str] = (),
    layers: Sequence[str] = (),
    images: str = "",
    textures: str = "",
    texture_groups: str = "",
    channels: int = 8,
    measure: bool = True,
    data_dir: str = "",
) -> None:
    """Explains the networks of a study and prints the findings.

    Args:
      run: Workdir of a finished study.
      out: Output folder; default: RUN/explain.
      arms: Names of arms; default: all trained arms.
      layers: Names of taps; default: the convolutions, or the stages of a ResNet.
      images: Folder of images to explain; default: the target's test images.
      textures: Folder with one sub-folder of texture images per class, preferably of
        materials that no stage has seen; default: the embedded textures.
      texture_groups: Regular expression, searched for in 'class/name.png' of
        --textures, whose first group names the piece of material: probes are tested on
        other pieces.
      channels: Number of channels per layer to draw, spread evenly; 0 = all.
      measure: Measure as well as draw.
      data_dir: Folder of prepared data sets; default: data/ in the user's cache folder.

    Raises:
      UserError: A setting is invalid, or the study is missing or incomplete.
    """
    require(channels >= 0, "--channels", channels, "at least 0")
    if textures and not measure:
        raise UserError(
            "--textures has no effect with --nomeasure: remove one of them.",
            where="--textures",
        )
    if texture_groups and not textures:
        raise UserError(
            "--texture_groups needs --textures: give that folder as well.",
            where="--texture_groups",
        )
    # Imported after jax is set up, and not for --help.
    from twostage_jax.explain import images as shown
    from twostage_jax.explain import networks, stimuli
    from twostage_jax.explain import run as command

    workdir = Path(run)
    loaded = networks.load_arms(workdir, arms)
    first = next(iter(loaded.values()))[0]
    if images:
        folder = Path(images)
        examples, left_out = shown.folder_examples(folder, first)
        by_seed = {one.seed: examples for of_arm in loaded.values() for one in of_arm}
        source = f"folder {folder.name}"
    else:
        by_seed, left_out = shown.test_examples(workdir, cli.data_dir(data_dir), loaded)
        source = "test images of the target"
    measured_with = None
    if textures:
        measured_with = stimuli.folder_textures(
            textures, first.size, first.channels, group_regex=texture_groups
        )
    chosen = networks.chosen_runs(workdir, arms)
    chosen += networks.stages_of_other_sizes(loaded)
    chosen += networks.views_not_averaged(loaded)
    for line in (*chosen, *left_out):
        print(line, flush=True)
    folder = Path(out) if out else workdir / "explain"
    explained = command.explain(
        loaded,
        by_seed,
        source,
        folder,
        layers=layers,
        channels=channels,
        measured=measure,
        textures=measured_with,
        chosen=chosen,
        left_out=left_out,
    )
    print("", *explained["words"], sep="\n")
    print(f"\nWritten to {folder}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(explain, argv)
