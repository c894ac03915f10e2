"""Measures of what the features of a network respond to, one subject per file."""
