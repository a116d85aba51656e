"""How well atoms are found: beside the maxima of the volume, an oracle, and what others have published.

    AET_STREAM_TEST_DATA=... python -m tests.bench_atoms published [--only np1_dose8e3] [--iterations 50] [--anew]
    python -m tests.bench_atoms campaign [--only 3] [--tilts 70] [--seen] [--rules '{"pressed": 0}'] [--table]

`published`: the series of `simulated-np`, multislice and not ours, from the volume of so many iterations; one-to-one matching, and as their
authors match. `campaign`: particles of ours at the counts and the noise of np2 at 8e3, some at 1.6e5, each beside the maxima of its volume
and beside an oracle, which is refined from the true places; on other seeds than those that rules were made on (`--seen`). What is
done is kept in bench/atoms, so that it goes on where it was; `--table` makes nothing and prints what is there. The way through a daemon:
tests/bench_atoms_daemon.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream.atoms.atoms_file import Atoms
from aet_stream.atoms.maxima import maxima
from aet_stream.atoms.run import Options, trace_source
from aet_stream.atoms.source import Source
from aet_stream.atoms.trace import Rules
from aet_stream.atoms.views import to_angstrom, to_places
from aet_stream.errors import NoAtoms
from aet_stream.projection import Array
from tests.atom_truth import KEEP, Score, Truth, as_the_authors, judge, one_to_one, oracle, published, rms, simulated

PUBLISHED = ("np1_dose8e3", "np1_dose1.6e5", "np2_dose8e3")
AUTHORS = {"np2_dose8e3": "recall 0.923  precision 0.944  RMSD 0.387 A  (BM3D, RESIRE 200 iterations, tracing; their own tables)"}
#: (kind, elements, atoms, seed, counts of the heaviest): what settings were chosen on
SEEN = (
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
#: What figures are stated of.
CAMPAIGN = (
    ("fcc", (79,), 450, 2000, 14.3),
    ("fcc", (78,), 450, 2001, 14.3),
    ("decahedron", (79,), 450, 2002, 14.3),
    ("icosahedron", (79,), 450, 2003, 14.3),
    ("twin", (78,), 450, 2004, 14.3),
    ("hcp", (27,), 450, 2005, 14.3),
    ("amorphous", (46,), 450, 2006, 14.3),
    ("core-shell", (79, 46), 450, 2007, 14.3),
    ("fcc", (79, 47), 450, 2008, 14.3),
    ("fcc", (78, 28), 450, 2009, 14.3),
    ("fcc", (78, 28), 450, 2010, 286.0),
    ("core-shell", (78, 28), 450, 2011, 286.0),
    ("decahedron", (78, 40), 450, 2012, 286.0),
    ("amorphous", (78, 28), 450, 2013, 286.0),
)
TILTS = ("180", "70")


def of_maxima(source: Source) -> Array:
    """(n, 3) angstrom"""
    found, _ = maxima(source.volume, source.pixel_angstrom)
    return to_angstrom(to_places(found, source.volume.shape), source.pixel_angstrom)


def find(source: Source, threads: int, rules: Rules | None = None) -> tuple[Atoms, float]:
    """(atoms, CPU seconds)"""
    began = time.process_time()
    return trace_source(source, Options(threads=threads), rules), time.process_time() - began


def on_published(given: argparse.Namespace) -> None:
    for name in PUBLISHED:
        if given.only in ("", name):
            truth = published(name)
            began = time.process_time()
            source = truth.source(given.iterations, anew=given.anew, threads=given.threads)
            cost = f", {time.process_time() - began:.0f} s CPU" if given.anew else ""
            print(f"{name}, {given.iterations} iterations{cost}\n  maxima    {judge(of_maxima(source), truth)}", flush=True)
            atoms, cpu_s = find(source, given.threads, Rules(**json.loads(given.rules)))
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


@dataclass(frozen=True, slots=True)
class Kept:
    """What was found in one series, by one set of rules."""

    truth: Truth
    maxima: Array
    oracle: Array
    oracle_kinds: Array
    angstrom: Array
    """(n, 3); none where atoms were refused"""
    sigmas: Array
    kinds: Array
    cpu_s: float
    said: str
    """Doubts, or why atoms were refused."""

    @property
    def scores(self) -> tuple[Score, Score, Score]:
        """(maxima, atoms, oracle)"""
        atoms, best = judge(self.angstrom, self.truth, self.kinds), judge(self.oracle, self.truth, self.oracle_kinds)
        return judge(self.maxima, self.truth), atoms, best

    def away_of_the_same(self) -> tuple[Array, ...]:
        """How far maxima, atoms and oracle are from those true atoms that all of them found, (n,) angstrom each.

        Else whoever finds what is hard to place would seem to place worse.
        """
        away = []
        for found in (self.maxima, self.angstrom, self.oracle):
            one, other = one_to_one(found, self.truth.places)
            some = np.full(len(self.truth.places), np.nan)
            some[other] = np.linalg.norm(found[one] - self.truth.places[other], axis=1)
            away.append(some)
        common = np.isfinite(away).all(axis=0)
        return tuple(some[common] for some in away)

    def true_and_stated(self) -> tuple[Array, Array]:
        """(matched, 3) angstrom each: how far atoms are off along x, y and z, and their standard deviations."""
        one, other = one_to_one(self.angstrom, self.truth.places)
        return self.angstrom[one] - self.truth.places[other], self.sigmas[one]


def kept(truth: Truth, given: argparse.Namespace) -> Kept | None:
    """Done now, or read if it was done before; None: it was not, and is not to be."""
    label = "" if given.rules == "{}" else "_" + "".join(c if c.isalnum() or c == "." else "-" for c in given.rules).strip("-")
    whole = KEEP / f"{truth.name}{label}.npz"
    oracle_path = KEEP / f"{truth.name}_oracle.npz"
    if given.anew and not given.table:
        whole.unlink(missing_ok=True)
    if not whole.exists():
        if given.table:
            return None
        source = truth.source(given.iterations)
        if not oracle_path.exists():
            places, kinds = oracle(truth, source, given.threads)
            save(oracle_path, oracle=places, oracle_kinds=kinds, maxima=of_maxima(source))
        began = time.process_time()
        try:
            atoms, cpu_s = find(source, given.threads, Rules(**json.loads(given.rules)))
        except NoAtoms as error:
            none = np.zeros((0, 3))
            save(whole, angstrom=none, sigmas=none, kinds=np.zeros(0, int), cpu_s=time.process_time() - began, said=f"refused: {error}")
        else:
            said = " ".join(atoms.doubts)
            save(whole, angstrom=atoms.angstrom, sigmas=atoms.sigmas_angstrom, kinds=atoms.kinds, cpu_s=cpu_s, said=said)
    found = {**np.load(whole), **np.load(oracle_path)}
    return Kept(truth, **{**found, "cpu_s": float(found["cpu_s"]), "said": str(found["said"])})


def save(path: Path, **arrays: object) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".draft.npz")
    np.savez(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(path)


def on_campaign(given: argparse.Namespace) -> None:
    """A row for each series, and what they come to together."""
    print("| particle | tilts | maxima | atoms | oracle | way: wrong, RMSD | each species found and named (oracle) | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    every: dict[str, list[Kept]] = {tilts: [] for tilts in TILTS}
    for number, (kind, elements, atoms, seed, counts) in enumerate(SEEN if given.seen else CAMPAIGN):
        for tilts in TILTS:
            if given.only in ("", str(number)) and given.tilts in ("", tilts):
                one = kept(simulated(kind, elements, atoms, seed, tilts, counts=counts, film=0.0 if given.seen else counts / 2), given)
                if one is not None:
                    print(row(number, one), flush=True)
                    every[tilts].append(one)
    for tilts, some in every.items():
        if some := [one for one in some if len(one.angstrom)]:
            print(f"\nStandard deviations, stated over true, {'+-' * (tilts == '70')}{tilts} degrees:")
            print(of_deviations(some))


def row(number: int, one: Kept) -> str:
    """Of the table."""
    kind, elements, _, _, tilts, counts, *_ = one.truth.name.split("_")
    first, atoms, best = one.scores
    what = f"{number} {kind} {elements}, {len(one.truth.places)} atoms, {counts} counts"
    if not len(one.angstrom):
        return f"| {what} | {tilts} | {short(first)} | {one.said} | {short(best)} | | | |"
    named = ", ".join(f"{z}: {share:.2f} ({best.species[z]:.2f})" for z, share in atoms.species.items()) if len(best.species) > 1 else ""
    way = (first.wrong - atoms.wrong) / max(1, first.wrong - best.wrong)
    before, after, most = (rms(away) for away in one.away_of_the_same())
    way_rmsd = (before - after) / max(1e-9, before - most)
    cost = f"{one.cpu_s:.0f} | {one.said}".rstrip()
    return f"| {what} | {tilts} | {short(first)} | {short(atoms)} | {short(best)} | {way:.2f}, {way_rmsd:.2f} | {named} | {cost}"


def short(score: Score) -> str:
    return f"{score.recall:.3f} {score.precision:.3f} {score.rmsd_angstrom:.3f}"


def of_deviations(some: list[Kept]) -> str:
    """By axis, in quarters of what is stated; and how many atoms of single series are within a factor of 1.5."""
    lines, pairs = [], [one.true_and_stated() for one in some]
    for axis, name in enumerate("xyz"):
        true, stated = (np.concatenate([pair[which][:, axis] for pair in pairs]) for which in (0, 1))
        edges = np.quantile(stated, np.linspace(0, 1, 5))[1:-1]
        parts = np.searchsorted(edges, stated)
        lines.append(f"  {name}: " + "  ".join(f"{rms(stated[parts == part]):.3f} / {rms(true[parts == part]):.3f}" for part in range(4)))
        each = [rms(stated[:, axis]) / rms(true[:, axis]) for true, stated in pairs]
        lines.append("     each series: " + " ".join(f"{ratio:.2f}" for ratio in each))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("published", "campaign"))
    parser.add_argument("--only", default="", help="one series or number")
    parser.add_argument("--tilts", default="", choices=("", *TILTS))
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="published: the volume, too, and say what that costs; campaign: the atoms")
    parser.add_argument("--seen", action="store_true", help="campaign: the particles that settings were chosen on")
    parser.add_argument("--rules", default="{}", help="others than the default, as JSON")
    parser.add_argument("--table", action="store_true", help="campaign: print what is there, make nothing")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO if given.verbose else logging.ERROR, format="    %(message)s")
    {"published": on_published, "campaign": on_campaign}[given.part](given)


if __name__ == "__main__":
    main()
