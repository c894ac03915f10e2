"""Texture selectivity of channels: textures against noise of the same spectrum.

Freeman, Ziemba, Heeger, Simoncelli & Movshon 2013 (doi:10.1038/nn.3402) found neurons of
V2, and not of V1, to respond more to natural textures than to noise with the same
spectrum. Linear filters followed by squaring cannot distinguish the two.
"""

import numpy as np

from twostage_jax.explain.measures.record import Measure, Panel, Sentence
from twostage_jax.explain.stimuli import Textures, periodic_component, phase_scrambled

MEASURES = (
    Measure(
        "texture_modulation",
        "texture modulation index",
        Panel("Texture modulation index", bottom=None),
        Sentence(
            "Textures.",
            "selective for textures (against noise of the same spectrum)",
            "Modulation index (−1 to 1)",
            shown=True,
        ),
    ),
)


def pairs(textures: Textures) -> tuple[np.ndarray, np.ndarray]:
    """Returns textures and noise of the same spectrum, `[N, H, W, C]` each.

    Textures are reduced to their periodic component, so that the spectra are equal.
    """
    shown = periodic_component(textures.images)
    return shown, phase_scrambled(shown)


def modulation_index(
    texture: np.ndarray, noise: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Returns the modulation index of Freeman et al. 2013 of each channel, `[C]`.

    (texture - noise) / (texture + noise) of the mean responses to each family, then the
    mean over the families that the channel responds to. It lies between -1 and 1; 0
    means that texture and noise are not distinguished.

    Args:
      texture, noise: Non-negative responses, means over the maps, `[N, C]`.
      labels: Texture families, `[N]`.

    Returns:
      `[C]`, NaN for a channel that responds to no family.
    """
    families = np.unique(labels)
    t, n = (
        np.stack([r[labels == f].mean(0, dtype=np.float64) for f in families])
        for r in (texture, noise)
    )
    total = t + n
    some = total > 0
    index = np.where(some, (t - n) / np.where(some, total, 1), 0)
    count = some.sum(0)
    mean = np.where(count > 0, index.sum(0) / np.maximum(count, 1), np.nan)
    return np.where(np.isfinite(total).all(0), mean, np.nan)
