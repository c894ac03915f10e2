"""Annotated regions of CT slices, one module per file format.

A new format is a module here that ends in `FORMAT = base.Format(...)`, and an entry in
`FORMATS`.
"""

from twostage_jax.ct.regions import masks, medgift, nifti, rtstruct, seg, table

# The first that recognises a file reads it.
FORMATS = (
    masks.FORMAT,
    nifti.FORMAT,
    table.FORMAT,
    medgift.FORMAT,
    seg.FORMAT,
    rtstruct.FORMAT,
)
