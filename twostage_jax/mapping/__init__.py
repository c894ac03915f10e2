"""Disease maps of CT series: a finished stage run, applied to windows of slices."""
