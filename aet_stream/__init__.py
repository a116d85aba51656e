"""aet_stream: background-free tilt series while the microscope is still writing them."""

__version__ = "0.1.0"
