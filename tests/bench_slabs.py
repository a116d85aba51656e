"""Peak memory and time of a volume made in memory and slab by slab: `python -m tests.bench_slabs [SIZE] [MIB]...`

60 projections of SIZE px (512), aligned, 4 iterations, judged by their halves: a process of its own with all memory, and one for each MIB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from aet_stream.reconstruct.volume_file import VOLUME
from tests.bench_reconstruct import REFERENCE_PX, SIGMA_PX, fcc_sphere, project
from tests.test_reconstruct import write_series

_CHILD = """
import sys, time, pathlib, matplotlib.figure
from aet_stream.reconstruct.run import Options, reconstruct
peak_mib = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
libraries_mib = peak_mib()
began = time.perf_counter(), time.process_time()
options = Options(iterations=4, memory_mib=int(sys.argv[2]))
made = reconstruct(pathlib.Path(sys.argv[1]), options, out=pathlib.Path(sys.argv[3]))
wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
print(f"{wall_s:.0f} s, {cpu_s:.0f} of a processor; peak {peak_mib()} MiB, of which {libraries_mib} of libraries", flush=True)
"""


def main(size_px: int, limits_mib: list[int]) -> None:
    tilts_deg = np.linspace(-70, 70, 60)
    views = project(fcc_sphere(size_px), tilts_deg, size_px, SIGMA_PX * size_px / REFERENCE_PX)
    with tempfile.TemporaryDirectory() as name:
        series = write_series(Path(name) / "gold" / "series.h5", views, tilts_deg)
        print(f"60 projections of {size_px} px: {views.nbytes >> 20} MiB, and a volume of {4 * size_px**3 >> 20} MiB", flush=True)
        del views
        made = {}
        for limit_mib in (0, *limits_mib):
            print(f"{f'within {limit_mib} MiB' if limit_mib else 'in memory'}: ", end="", flush=True)
            made[limit_mib] = series.with_name(f"{limit_mib}.h5")
            subprocess.run([sys.executable, "-c", _CHILD, str(series), str(limit_mib), str(made[limit_mib])], check=True)
            print(f"    {_apart(made[limit_mib], made[0])}", flush=True)


def _apart(one: Path, other: Path) -> str:
    with h5py.File(one) as file, h5py.File(other) as whole:
        most = max(float(np.abs(slice_ - whole[VOLUME][at]).max()) for at, slice_ in enumerate(file[VOLUME]))
        first, end = file["reconstruction/quality/fsc"].attrs["slices"]
    return f"voxels at most {most:g} apart; halves compared in {end - first} slices"


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 512, [int(mib) for mib in sys.argv[2:]])
