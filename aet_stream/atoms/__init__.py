"""Atoms from a volume: maxima, refined against the projections that it was made from."""
