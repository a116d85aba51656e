"""`python -m tests.durability PART...`: run campaigns, keep what they found, and write docs/durability.md from it.

Every part adds lines to a results file and skips what stands there already, so a long run can be made in pieces. `make durability` runs all
parts and the report.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.durability import campaign, crashstates, matrix, mutants, orphans, report, soak


def cases(part: str, seed: int, seconds: float) -> Iterator[tuple[str, Any]]:
    """(name, work) of everything that a part consists of; the work takes an empty folder and returns what is to be kept."""
    match part:
        case "matrix":
            for cell in matrix.cells():
                yield str(cell), lambda folder, cell=cell: _cell(cell, folder)
        case "kill" | "power":
            for number, life in enumerate(crashstates.LIVES):
                yield from _states(part, number, life, seed)
        case "mutants":
            for mutant in mutants.MUTANTS:
                yield mutant.name, lambda folder, mutant=mutant: {"caught": mutants.caught(mutant, folder)}
        case "campaign":
            yield f"seed {seed}", lambda folder: campaign.run(folder, seed=seed, seconds=seconds)
            yield f"seed {seed}, supervised", lambda folder: campaign.run(folder, seed=seed, seconds=seconds, supervised=True)
        case "orphans":
            for number in range(seed, seed + 8):
                yield f"seed {number}", lambda folder, number=number: orphans.run(folder, seed=number, kills=25)
        case "soak":
            yield f"seed {seed}", lambda folder: soak.run(folder, seconds=seconds)
        case "fsync":
            yield f"seed {seed}", lambda folder: soak.cost_of_safety(folder)


def _cell(cell: matrix.Cell, folder: Path) -> dict[str, Any]:
    outcome = matrix.run(cell, folder / "case")
    return {"reached": outcome.reached, "wrong": outcome.words}


def _states(part: str, number: int, life: Any, seed: int) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        recording = crashstates.record(Path(name) / "life", *life)
    states = crashstates.kill_states(recording) if part == "kill" else crashstates.power_states(recording, 5, seed + number)
    for count, state in enumerate(states):
        yield (
            f"life {number} state {count}",
            lambda folder, state=state: {"state": state.words, "outcome": crashstates.outcome_of(state, folder / "x")},
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument(
        "parts", nargs="+", choices=["matrix", "kill", "power", "mutants", "campaign", "orphans", "soak", "fsync", "report"]
    )
    parser.add_argument("--results", type=Path, default=Path("durability.jsonl"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of a campaign or soak")
    parser.add_argument("--limit", type=float, default=1e9, metavar="S", help="begin nothing new after so many seconds")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    for part in given.parts:
        if part == "report":
            print(report.write(given.results))
            continue
        done = {line["case"] for line in report.lines(given.results) if line["part"] == part}
        counted = 0
        for name, work in cases(part, given.seed, given.seconds):
            if name in done:
                continue
            if time.monotonic() - began > given.limit:
                break
            folder = Path(tempfile.mkdtemp(prefix="durability-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
            try:
                found = work(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            line = {"part": part, "case": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "seed": given.seed, **found}
            with given.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            counted += 1
        print(f"{part}: {counted} new cases", flush=True)


if __name__ == "__main__":
    main()
