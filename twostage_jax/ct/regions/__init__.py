"""Annotated regions of CT slices, one module per file format.

To add a format, write a module that ends with `FORMAT = base.Format(...)`, and list it in
`FORMATS`.
"""

from twostage_jax.ct.regions import masks, medgift, nifti, rtstruct, seg, table

# The first format that recognises a file reads it.
FORMATS = (
    masks.FORMAT,
    nifti.FORMAT,
    table.FORMAT,
    medgift.FORMAT,
    seg.FORMAT,
    rtstruct.FORMAT,
)
