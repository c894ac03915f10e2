"""Shows and measures what the features of each arm respond to.

    python -m twostage_jax.explain --run=WORKDIR
    python -m twostage_jax.explain --run=WORKDIR --arms=natural,two_stage --layers=conv2
    python -m twostage_jax.explain --run=WORKDIR --textures=FOLDER

draws, for every arm of a finished study, the patches that channels answer to most with
their DeSaliNet pictures, the filters of the first layer, and saliency maps with checks
of the methods; measures how the layers answer to edges and textures; and writes
`explain.json`, `explain.md` and `figures/` into WORKDIR/explain.
"""

import functools
from pathlib import Path

from absl import flags

from twostage_jax import cli
from twostage_jax.errors import UserError

RUN = flags.DEFINE_string("run", None, "Workdir of a study that has been run.")
OUT = flags.DEFINE_string("out", None, "Folder to write; default: RUN/explain.")
ARMS = flags.DEFINE_list("arms", [], "Names of arms; default: all that were trained.")
LAYERS = flags.DEFINE_list(
    "layers", [], "Names of taps; default: the convolutions, or a ResNet's stages."
)
IMAGES = flags.DEFINE_string(
    "images", None, "Folder of images to show; default: the target's test images."
)
TEXTURES = flags.DEFINE_string(
    "textures",
    None,
    "Folder of class folders of textures to measure with, best of materials that no "
    "stage has seen; default: the embedded ones.",
)
TEXTURE_GROUPS = flags.DEFINE_string(
    "texture_groups",
    "",
    "Regular expression, searched for in 'class/name.png' of --textures, whose first "
    "group names the piece of material: probes are tested on other pieces.",
)
CHANNELS = flags.DEFINE_integer(
    "channels", 8, "Channels of a layer to draw, spread evenly; 0 = all.", lower_bound=0
)
MEASURE = flags.DEFINE_bool("measure", True, "Measure as well as draw.")


def main() -> None:
    """Explains the study of the flags."""
    # Not before jax is set up.
    from twostage_jax.explain import command, images, runs, stimuli

    if not RUN.value:
        raise UserError("--run is missing: give the workdir of a study.")
    workdir = Path(RUN.value)
    say = functools.partial(print, flush=True)
    arms = runs.load_arms(workdir, ARMS.value)
    if IMAGES.value:
        folder = Path(IMAGES.value)
        one, left_out = images.folder_examples(folder, next(iter(arms.values()))[0])
        examples = {network.seed: one for of_arm in arms.values() for network in of_arm}
        source = f"folder {folder.name}"
    else:
        examples, left_out = images.test_examples(workdir, cli.data_dir(), arms)
        source = "test images of the target"
    textures = None
    if TEXTURES.value is not None and not MEASURE.value:
        raise UserError("--textures is what to measure with: leave out --nomeasure.")
    if TEXTURES.value is not None:
        first = next(iter(arms.values()))[0]
        textures = stimuli.folder_textures(
            TEXTURES.value,
            first.size,
            first.channels,
            group_regex=TEXTURE_GROUPS.value,
        )
    elif TEXTURE_GROUPS.value:
        raise UserError("--texture_groups is about --textures: give that folder, too.")
    chosen = runs.chosen_runs(workdir, ARMS.value)
    for line in (*chosen, *left_out):
        say(line)
    out = Path(OUT.value) if OUT.value else workdir / "explain"
    explained = command.explain(
        arms,
        examples,
        source,
        out,
        layers=LAYERS.value,
        channels=CHANNELS.value,
        measured=MEASURE.value,
        textures=textures,
        chosen=chosen,
        left_out=left_out,
        say=say,
    )
    say("")
    for text in explained["words"]:
        say(text)
    say(f"\nWritten to {out}.")


if __name__ == "__main__":
    cli.run(main)
