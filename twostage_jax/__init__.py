"""Two-stage feature transfer for textural medical images."""
