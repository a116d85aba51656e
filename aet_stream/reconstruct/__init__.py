"""A volume from a background-free tilt series: the built-in solver, or tomopy where it imports."""
