"""A volume from a background-free tilt series: the built-in solver, tomopy where it imports, ASTRA on a GPU."""
