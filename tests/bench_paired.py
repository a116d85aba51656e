"""Another commit against this one, in one run: seconds of different runs do not compare, their ratio within one does.

    python -m tests.bench_paired ff3bcd80 [--rounds 4] [--daemon 3] [--size 256 --size 1024]

Both are checked out beside each other and loaded; then they are given the same frames in turn, a frame each, so that what else the computer
does falls on both alike. `--daemon N`: also each commit's own daemon in turn, N times: frames a second of many files at once, against those
of a bare loop of its estimator in the same turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench import recorded

REPOSITORY = Path(__file__).parent.parent
FRAMES = 7
"""Simulated ones, all unlike: their time depends on what they show; an odd number, so that each commit is first with each."""
ONE_CORE = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
"""As commands of ours set it for themselves."""
WORK = """
import sys, time
import numpy as np
from aet_stream import service
from aet_stream.denoise.denoiser import Denoiser
getattr(service, "keep_freed_memory", lambda: None)()  # as that commit's worker
frames, denoiser = np.load(sys.argv[1]), Denoiser(model="default")
denoiser.warm_up()
print("ready", flush=True)
for line in sys.stdin:
    began, used = time.perf_counter(), time.process_time()
    denoiser.subtract(frames[int(line)])
    print(time.perf_counter() - began, time.process_time() - used, flush=True)
"""
DAEMON = """
import pathlib, sys
from tests import bench
bench.latency(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


class Commit:
    """One of the two, checked out."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name, self.tree = name, tree
        self.seconds: list[tuple[float, float]] = []
        """(passed, of processors) for each frame"""
        self.rates: list[float] = []
        self._child: subprocess.Popen[str] | None = None

    def load(self, frames: Path) -> None:
        """With its estimator, ready for frames."""
        self._child = subprocess.Popen(
            [sys.executable, "-c", WORK, str(frames)],
            cwd=self.tree, env=os.environ | ONE_CORE, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "ready\n"
        self.seconds = []

    def ask(self, frame: int) -> None:
        """What it takes for one frame."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(frame, file=self._child.stdin, flush=True)
        passed, used = map(float, self._child.stdout.readline().split())
        self.seconds.append((passed, used))

    def end(self) -> None:
        if self._child is not None:
            self._child.communicate()

    def run_daemon(self, size_px: int, files: int) -> None:
        """Its daemon with so many files at once."""
        with tempfile.TemporaryDirectory() as folder:
            said = subprocess.run(
                [sys.executable, "-c", DAEMON, folder, str(size_px), str(files)], cwd=self.tree, text=True, capture_output=True, check=True
            ).stdout
        self.rates.append(float(said.split("sustained ")[1].split()[0]))


def estimators(theirs: Commit, ours: Commit, frames: Path, count: int, rounds: int) -> None:
    """A frame each in turn; the first round is for warming up."""
    for commit in (theirs, ours):
        commit.load(frames)
    for turn in range((1 + rounds) * count):
        for commit in (theirs, ours) if turn % 2 else (ours, theirs):
            commit.ask(turn % count)
    for commit in (theirs, ours):
        commit.end()
        commit.seconds = commit.seconds[count:]


def said(theirs: Commit, ours: Commit, size_px: int, count: int) -> None:
    """The median of the ratios of the pairs; and of each frame the shortest of its turns, which other work has least to do with."""
    of_theirs, of_ours = (np.array(commit.seconds) for commit in (theirs, ours))
    ratios = np.sort(of_ours[:, 0] / of_theirs[:, 0])
    best = [np.mean([1000 * times[frame::count].min(0) for frame in range(count)], 0) for times in (of_theirs, of_ours)]
    words = ", ".join(
        f"{commit.name} {ms:.0f} ms ({used:.0f} of processors)" for commit, (ms, used) in zip((theirs, ours), best, strict=True)
    )
    (ratio, of_processors), (low, middle, high) = best[1] / best[0], np.quantile(ratios, [0.25, 0.5, 0.75])
    print(
        f"{size_px:>5} px  best: {words}, ratio {ratio:.2f} ({of_processors:.2f}); "
        f"ratio of {len(ratios)} pairs: median {middle:.2f}, quartiles {low:.2f} and {high:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other one")
    parser.add_argument("--size", type=int, action="append", help="px, of square frames; 256 and 1024")
    parser.add_argument("--rounds", type=int, default=4, help=f"of {FRAMES} frames each")
    parser.add_argument("--daemon", type=int, default=0, help="how often to run each daemon")
    parser.add_argument("--files", type=int, default=30, help="at once for a daemon")
    said_ = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "theirs"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), said_.commit], cwd=REPOSITORY, check=True, capture_output=True)
        try:
            for size_px in said_.size or (256, 1024):
                theirs, ours = Commit(said_.commit, tree), Commit("this one", REPOSITORY)
                frames = Path(name) / f"{size_px}.npy"
                np.save(frames, np.stack(recorded(FRAMES, size_px)))
                estimators(theirs, ours, frames, FRAMES, said_.rounds)
                said(theirs, ours, size_px, FRAMES)
                for turn in range(said_.daemon):
                    for commit in (theirs, ours) if turn % 2 else (ours, theirs):
                        commit.run_daemon(size_px, said_.files)
                if said_.daemon:
                    of_theirs, of_ours = (float(np.median(commit.rates)) for commit in (theirs, ours))
                    bare = 1 / float(np.median([passed for passed, _ in ours.seconds]))
                    print(
                        f"          daemon: {of_theirs:.2f} and {of_ours:.2f} frames/s, ratio {of_ours / of_theirs:.2f}; "
                        f"{100 * of_ours / bare:.0f} % of a bare loop's {bare:.2f}",
                        flush=True,
                    )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()
