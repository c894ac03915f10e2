"""TFDS builder of all data sets that recipes make."""

from twostage_jax.data.prepared.prepared_dataset_builder import Builder as Builder
