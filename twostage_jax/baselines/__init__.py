"""What anyone would try before a network: descriptors and a linear classifier."""
