"""TFDS builder of every data set that a recipe makes."""

from twostage_jax.data.prepared.prepared_dataset_builder import Builder as Builder
