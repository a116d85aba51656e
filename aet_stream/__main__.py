"""`aet-stream` and `python -m aet_stream`."""

import atexit
import gc
import os

# OpenBLAS's threads wait for each other by spinning: beside other work that took five times the computing time here, and nothing is large
# enough to gain from them. Children inherit it; it counts only before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from aet_stream.cli import main

# All that is left ends with the process: to look for cycles in it once more takes a tenth of a second, half of one with torch.
atexit.register(gc.freeze)

if __name__ == "__main__":
    raise SystemExit(main())
