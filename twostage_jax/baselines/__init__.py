"""Baselines to try before a network: texture descriptors and a linear classifier."""
