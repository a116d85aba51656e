"""How well atoms are found: beside the maxima of the volume, an oracle, and what others have published.

    AET_STREAM_TEST_DATA=... python -m tests.bench_atoms published [--only np1_dose8e3] [--iterations 50] [--anew]
    python -m tests.bench_atoms simulated [--only 3] [--tilts 70]

`published`: the series of `simulated-np`, multislice and not ours, from the volume of so many iterations; one-to-one matching, and as their
authors match. `simulated`: particles of ours at the counts of np2 at 8e3, each beside the maxima of its volume and beside an oracle, which
is refined from the true places. Volumes are kept in bench/atoms. The way through a running daemon: tests/bench_atoms_daemon.py.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time

import numpy as np

from aet_stream.atoms.atoms_file import Atoms
from aet_stream.atoms.maxima import maxima
from aet_stream.atoms.run import Options, trace_source
from aet_stream.atoms.source import Source
from aet_stream.atoms.views import to_angstrom, to_places
from aet_stream.errors import NoAtoms
from tests.atom_truth import Truth, as_the_authors, judge, oracle, published, simulated

PUBLISHED = ("np1_dose8e3", "np1_dose1.6e5", "np2_dose8e3")
AUTHORS = {"np2_dose8e3": "recall 0.923  precision 0.944  RMSD 0.387 A  (BM3D, RESIRE 200 iterations, tracing; their own tables)"}
#: (kind, elements, atoms, seed, counts of the heaviest)
PARTICLES = (
    ("fcc", (79,), 1400, 1000, 14.3),
    ("decahedron", (79,), 1400, 1001, 14.3),
    ("icosahedron", (79,), 1400, 1002, 14.3),
    ("hcp", (79,), 1400, 1003, 14.3),
    ("amorphous", (79,), 1400, 1004, 14.3),
    ("fcc", (78, 28), 1400, 1005, 14.3),
    ("fcc", (79, 46), 1400, 1006, 14.3),
    ("decahedron", (78, 28), 1400, 1007, 14.3),
    ("amorphous", (78, 28), 1400, 1008, 14.3),
    ("icosahedron", (79, 47), 1400, 1009, 14.3),
    ("amorphous", (79,), 6000, 1010, 14.3),
    ("fcc", (79,), 5000, 1011, 14.3),
    ("fcc", (78, 28), 1400, 1005, 143.0),
    ("amorphous", (78, 28), 1400, 1008, 143.0),
    ("fcc", (78, 26), 1400, 1012, 143.0),
)


def of_maxima(source: Source) -> np.ndarray:
    """(n, 3) angstrom"""
    found, _ = maxima(source.volume, source.pixel_angstrom)
    return to_angstrom(to_places(found, source.volume.shape), source.pixel_angstrom)


def find(source: Source, threads: int) -> tuple[Atoms, float]:
    """(atoms, CPU seconds)"""
    began = time.process_time()
    return trace_source(source, Options(threads=threads)), time.process_time() - began


def on_published(given: argparse.Namespace) -> None:
    for name in PUBLISHED:
        if given.only in ("", name):
            truth = published(name)
            began = time.process_time()
            source = truth.source(given.iterations, anew=given.anew, threads=given.threads)
            cost = f", {time.process_time() - began:.0f} s CPU" if given.anew else ""
            print(f"{name}, {given.iterations} iterations{cost}\n  maxima    {judge(of_maxima(source), truth)}", flush=True)
            atoms, cpu_s = find(source, given.threads)
            print(f"  refined   {judge(atoms.angstrom, truth)}  {cpu_s:.0f} s CPU")
            for least in (0.9, 0.98):
                sure = atoms.presence > least
                print(f"    present with {least}: {judge(atoms.angstrom[sure], truth)}")
            recall, precision, rmsd = as_the_authors(atoms.angstrom, truth)
            print(f"    matched as the authors do: recall {recall:.4f}  precision {precision:.4f}  RMSD {rmsd:.3f} A")
            print(f"  published {AUTHORS.get(name, 'nothing')}")
            print(
                f"  doubts: {atoms.doubts or 'none'}; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB",
                flush=True,
            )


def on_simulated(given: argparse.Namespace) -> None:
    for number, (kind, elements, atoms, seed, counts) in enumerate(PARTICLES):
        for tilts in ("180", "70"):
            if given.only in ("", str(number)) and given.tilts in ("", tilts):
                one_particle(number, simulated(kind, elements, atoms, seed, tilts, counts=counts), given)


def one_particle(number: int, truth: Truth, given: argparse.Namespace) -> None:
    source = truth.source(given.iterations)
    print(f"{number} {truth.name}, {truth.images.shape[2]} px", flush=True)
    first, best = judge(of_maxima(source), truth), judge(oracle(truth, source, given.threads), truth)
    print(f"  maxima  {first}\n  oracle  {best}", flush=True)
    try:
        atoms, cpu_s = find(source, given.threads)
    except NoAtoms as error:
        print(f"  refused {error}", flush=True)
        return
    score = judge(atoms.angstrom, truth, atoms.kinds)
    way = (first.wrong - score.wrong) / max(1, first.wrong - best.wrong)
    way_rmsd = (first.rmsd_angstrom - score.rmsd_angstrom) / max(1e-9, first.rmsd_angstrom - best.rmsd_angstrom)
    print(
        f"  atoms   {score}  {cpu_s:.0f} s CPU, way to the oracle: wrong {way:.2f}, RMSD {way_rmsd:.2f}  {' '.join(atoms.doubts)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("published", "simulated"))
    parser.add_argument("--only", default="", help="one series or number")
    parser.add_argument("--tilts", default="", help="180 or 70")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="published: make the volume anew, and say what that costs")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO if given.verbose else logging.ERROR, format="    %(message)s")
    {"published": on_published, "simulated": on_simulated}[given.part](given)


if __name__ == "__main__":
    main()
