"""Measures of what the features of a network respond to, one subject per file."""

from twostage_jax.explain.measures import (
    gabor,
    probes,
    reliance,
    similarity,
    textures,
    tuning,
)
from twostage_jax.explain.measures.record import Measure

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for subject in (tuning, textures, probes, gabor, similarity, reliance)
    for measure in subject.MEASURES
}
