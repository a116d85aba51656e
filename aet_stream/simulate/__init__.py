"""A microscope in software: particles, their images, the background they lie on, and an instrument that writes them as files."""
