"""Whatever a broken DICOM file makes the libraries do becomes a refusal in plain words.

Neither messages nor logs repeat what a file holds: a value may identify a patient.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from twostage_jax.errors import UserError

_SPOKEN = ("pydicom", "highdicom")
# Python's messages put a value between quotation marks.
_QUOTED = re.compile(r"(['\"]).*?\1")


@contextlib.contextmanager
def refusing(path: Path, form: str = "DICOM") -> Iterator[None]:
    """Turns whatever a broken file makes the decoders raise into a refusal, quietly.

    Args:
      path: The file.
      form: Name of its format, for the message.

    Raises:
      UserError: In place of any other exception; it names the file.
    """
    try:
        with quiet():
            yield
    except UserError:
        raise
    # Broken files raise nearly everything in pydicom and the codecs below it.
    except Exception as error:
        text = _QUOTED.sub("'...'", " ".join(str(error).split()))
        why = text or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as {form}: {why}", where=path
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom and highdicom from warning and logging, which repeat values.

    For one thread at a time, as `warnings.catch_warnings` is.
    """
    loggers = [logging.getLogger(name) for name in _SPOKEN]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # What `pixels` makes an error of stays one.
        warnings.filterwarnings("ignore", message="(?!The decoded RLE segment)")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
