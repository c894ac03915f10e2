"""The notice on every output, and the origin of the training images."""

NOTICE = "Research use only, not for diagnosis"
# Statements on whether the training images were synthetic (None: not recorded), in full,
# and short for fields of 64 or 79 characters that also contain the notice.
ORIGINS = {
    True: "Model trained on synthetic images, not on patients",
    None: "Whether the model was trained on synthetic images is not recorded",
    False: "",
}
SHORT_ORIGINS = {True: "synthetic training", None: "training unknown", False: ""}


def notices(synthetic: bool | None, *, short: bool = False) -> tuple[str, ...]:
    """Returns the notice that every output carries, and the origin of the training data.

    Args:
      synthetic: Whether the model was trained on synthetic images; None if not recorded.
      short: Whether both must fit a field of 64 characters.
    """
    origin = (SHORT_ORIGINS if short else ORIGINS)[synthetic]
    return tuple(filter(None, (NOTICE, origin)))
