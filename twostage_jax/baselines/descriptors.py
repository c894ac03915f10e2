"""Texture descriptors of grey patches, as used before convolutional networks.

Local binary patterns (Ojala, Pietikainen, Maenpaa 2002, doi:10.1109/TPAMI.2002.1017623)
at several radii, statistics of grey-level co-occurrence (Haralick, Shanmugam, Dinstein
1973, doi:10.1109/TSMC.1973.4309314), and the histogram of grey levels.
"""

import numpy as np
import skimage

# (points on the circle, radius in pixels) of the local binary patterns.
CIRCLES = ((8, 1.0), (8, 2.0), (16, 3.0))
# Co-occurrence: grey levels, distances in pixels, and four directions.
LEVELS, DISTANCES = 16, (1, 2, 4)
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PROPERTIES = (
    "contrast",
    "dissimilarity",
    "homogeneity",
    "energy",
    "correlation",
    "entropy",
)
HISTOGRAM_BINS = 32


def describe(patches: np.ndarray) -> np.ndarray:
    """Returns the descriptors of patches, `[N, F]` float64.

    Patterns are uniform and invariant to rotation; co-occurrence is averaged over its
    four directions. A channel is described on its own.

    Args:
      patches: `[N, H, W, C]` in [0, 1], such as HU in a window.
    """
    channels = range(patches.shape[-1])
    return np.stack(
        [
            np.concatenate([_described(patch[..., c]) for c in channels])
            for patch in patches
        ]
    )


def _described(patch: np.ndarray) -> np.ndarray:
    bytes_ = np.rint(255 * np.clip(patch, 0, 1)).astype(np.uint8)
    parts = [_patterns(bytes_, *circle) for circle in CIRCLES]
    parts.append(_co_occurrence(np.minimum(bytes_ // (256 // LEVELS), LEVELS - 1)))
    parts.append(np.histogram(bytes_, HISTOGRAM_BINS, (0, 256))[0] / bytes_.size)
    return np.concatenate(parts)


def _patterns(patch: np.ndarray, points: int, radius: float) -> np.ndarray:
    codes = skimage.feature.local_binary_pattern(
        patch, points, radius, method="uniform"
    ).astype(int)
    return np.bincount(codes.ravel(), minlength=points + 2) / codes.size


def _co_occurrence(patch: np.ndarray) -> np.ndarray:
    reach = [d for d in DISTANCES if d < min(patch.shape)]
    matrix = skimage.feature.graycomatrix(
        patch, reach, ANGLES, levels=LEVELS, symmetric=True, normed=True
    )
    return np.concatenate(
        [skimage.feature.graycoprops(matrix, p).mean(1) for p in PROPERTIES]
    )
