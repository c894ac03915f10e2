"""Lung masks against the phantoms' own lungs."""

import numpy as np
import pytest

from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.phantom import phantom_slices


@pytest.mark.parametrize("patient", [0, 3])
def test_mask_overlaps_the_lungs_of_a_phantom(patient):
    phantom = phantom_slices(patient, seed=0, slices=2, matrix=256)
    mask = lung_mask(phantom.hu, (phantom.spacing, phantom.spacing))
    overlap = 2 * (mask & phantom.lungs).sum() / (mask.sum() + phantom.lungs.sum())
    assert overlap > 0.9


def test_no_lungs_give_an_empty_mask():
    water = np.zeros((1, 64, 64), np.int16)
    assert not lung_mask(water, (1.0, 1.0)).any()
