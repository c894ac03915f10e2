"""Two-stage feature transfer for textural medical images."""

__version__ = "0.1.0"
