"""Gaussian processes, each in the form that is quickest for what it is asked."""
