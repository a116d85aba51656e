"""Nothing lost, nothing doubled: the machinery that tries to prove otherwise. `python -m tests.durability --help`."""
