"""Colours of classes, and the notice on every output."""

from collections.abc import Sequence

from twostage_jax.errors import plain

NOTICE = "Research use only, not for diagnosis"
# Statements on whether the training images were synthetic (None: not recorded), in full,
# and short for fields of 64 or 79 characters that also contain the notice.
ORIGINS = {
    True: "Model trained on synthetic images, not on patients",
    None: "Whether the model was trained on synthetic images is not recorded",
    False: "",
}
SHORT_ORIGINS = {True: "synthetic training", None: "training unknown", False: ""}
# Label of lung that differs from the training images; see `train.novelty`.
UNLIKE = "unlike the training images"
NORMAL_NAMES = ("normal", "healthy")
# Okabe and Ito 2008, "Color Universal Design": distinguishable with all forms of colour
# blindness. Neighbours in this order differ strongly.
COLOURS = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)


def is_normal(name: str) -> bool:
    """Returns whether a class is lung without disease."""
    return name.strip().lower() in NORMAL_NAMES


def colour(index: int, class_names: Sequence[str]) -> tuple[int, int, int] | None:
    """Returns the RGB colour of a class, 0 to 255; None for normal lung, drawn in grey."""
    if is_normal(class_names[index]):
        return None
    return COLOURS[_diseases_before(index, class_names) % len(COLOURS)]


def is_striped(index: int, class_names: Sequence[str]) -> bool:
    """Returns whether a class repeats an earlier colour, and is drawn in stripes."""
    return _diseases_before(index, class_names) >= len(COLOURS)


def printable(text: str, longest: int) -> str:
    """Returns a text as one line of at most `longest` printable characters."""
    line = plain(text)
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def _diseases_before(index: int, class_names: Sequence[str]) -> int:
    return sum(not is_normal(name) for name in class_names[:index])
