"""Does all this notice anything? Safety code is broken on purpose, one place at a time; each time a named suite must turn red.

A mutant names a function and what is done to its syntax tree, in a copy of the sources, so that it outlives formatting and rewording. One
that does not fit exactly one place of its function is an error: mutants must not die quietly.
"""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]

#: Something done to one node of a function: another node, None (away with it), or the node itself where it does not apply.
Edit = Callable[[ast.AST], ast.AST | None]


@dataclass(frozen=True)
class Mutant:
    name: str
    stands_for: str
    """The fault that somebody might make."""
    where: str
    """Function by its full name: `package.module:Class.method`."""
    edit: Edit
    suite: str
    """What must turn red, of the quick tests: arguments for pytest."""

    @property
    def file(self) -> str:
        module = self.where.partition(":")[0].replace(".", "/")
        return f"{module}/__init__.py" if (HERE / module).is_dir() else f"{module}.py"


def _words(node: ast.AST) -> set[str]:
    """Every name and attribute within a node."""
    return {getattr(part, "attr", None) or getattr(part, "id", "") for part in ast.walk(node)}


def without(call: str) -> Edit:
    """The statement that calls this is dropped."""

    def edit(node: ast.AST) -> ast.AST | None:
        value = node.value if isinstance(node, ast.Expr | ast.AugAssign) else None
        return ast.Pass() if isinstance(value, ast.Call) and ast.unparse(value.func) == call else node

    return edit


def without_loop(call: str) -> Edit:
    """The loop over what this gives is dropped."""

    def edit(node: ast.AST) -> ast.AST | None:
        over = node.iter if isinstance(node, ast.For) else None
        return ast.Pass() if isinstance(over, ast.Call) and ast.unparse(over.func) == call else node

    return edit


def never(word: str) -> Edit:
    """The `if` whose condition speaks of this is never entered."""

    def edit(node: ast.AST) -> ast.AST:
        return ast.If(ast.Constant(False), node.body, node.orelse) if isinstance(node, ast.If) and word in _words(node.test) else node

    return edit


def anything(word: str) -> Edit:
    """The comparison that speaks of this is always true."""

    def edit(node: ast.AST) -> ast.AST:
        return ast.Constant(True) if isinstance(node, ast.Compare) and word in _words(node) else node

    return edit


def returns(expression: str) -> Edit:
    """The function does nothing but return this."""

    def edit(node: ast.AST) -> ast.AST:
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Return(ast.parse(expression, mode="eval").body)]
        return node

    return edit


def reworded(old: str, new: str) -> Edit:
    """A text says something else."""

    def edit(node: ast.AST) -> ast.AST:
        said = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        return ast.Constant(said.replace(old, new)) if old in said else node

    return edit


def catches(other: str) -> Edit:
    """The handler waits for another error."""

    def edit(node: ast.AST) -> ast.AST:
        return ast.ExceptHandler(ast.Name(other), node.name, node.body) if isinstance(node, ast.ExceptHandler) else node

    return edit


class _Editing(ast.NodeTransformer):
    """Applies an edit everywhere within one function, and counts where it did something."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self.applied = 0

    def visit(self, node: ast.AST) -> ast.AST | None:
        before = ast.dump(node)
        edited = self._edit(node)
        if edited is not node or ast.dump(node) != before:
            self.applied += 1
            return edited
        self.generic_visit(node)
        return node


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function of that name, methods as `Class.method`."""
    found: ast.AST = tree
    for part in name.split("."):
        inside = [node for node in ast.walk(found) if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        if len(inside) != 1:
            raise ValueError(f"{name} stands {len(inside)} times")
        found = inside[0]
    assert isinstance(found, ast.FunctionDef)
    return found


def broken(mutant: Mutant) -> str:
    """The source of the mutant's file, with its fault.

    Raises
    ------
    ValueError : it no longer fits the code
    """
    tree = ast.parse((HERE / mutant.file).read_text())
    editing = _Editing(mutant.edit)
    try:
        editing.visit(_function(tree, mutant.where.partition(":")[2]))
    except ValueError as error:
        raise ValueError(f"mutant {mutant.name!r}: {error} in {mutant.file}") from error
    if editing.applied != 1:
        raise ValueError(f"mutant {mutant.name!r} fits {editing.applied} places of {mutant.where}, not one")
    return ast.unparse(ast.fix_missing_locations(tree))


CRASH = "tests/durability/test_crash_states.py"
KILLS = "tests/durability/test_failpoints.py -k "
ODD = "tests/test_odd.py"
WORD = "tests/test_editions.py -k person"
PRUNING = "tests/test_pruning.py -k "
A = "aet_stream."
MUTANTS = (
    Mutant("no fsync of files", "content reaches the disk after the name: empty or torn files after a power cut", A + "durable:write_synced",
           without("os.fsync"), CRASH),
    Mutant("no fsync of folders", "a stored projection loses its name in a power cut", A + "durable:sync_folder",
           without("sync_file"), CRASH),
    Mutant("new folders not synced", "the first projections of a series vanish with their folder in a power cut", A + "durable:make_folder",
           without("sync_folder"), CRASH),
    Mutant("no rename", "half-written files under their final name", A + "durable:temporary",
           returns("path"), KILLS + "projection\\ or\\ master\\ or\\ close"),
    Mutant("no idempotence", "a copy, or a result that comes twice, becomes a second row", A + "judging:Rows.same_pixels",
           returns("[]"), KILLS + "want"),
    Mutant("the ledger is believed, not the files", "stored, but killed before the ledger knew: read and stored again", A + "hub.intake:Intake._is_open",
           never("holds"), "tests/test_queue.py"),
    Mutant("files without a row are not adopted", "a ledger that is older than the disk: rows of the series unknown, then doubled",
           A + "hub.archive:Archive._reconcile", without("self._ledger.adopt"), "tests/test_recovery.py tests/test_store.py"),
    Mutant("rows without a file are believed", "a projection file is lost and nobody reads its source again",
           A + "hub.archive:Archive._reconcile", without("self._ledger.lose"), "tests/test_recovery.py"),
    Mutant("drafts stay", "the folder fills up with what killed hubs left behind", A + "hub.store:SeriesStore.remove_drafts", returns("None"), CRASH),
    Mutant("no checksum of pixels", "a flipped bit goes into the closed file", A + "layout:checking_pixels",
           never("found"), "tests/test_recovery.py tests/test_store.py"),
    Mutant("no checksum of the rest", "a flipped bit in a tilt is not noticed by verify", A + "series:Series._doubts_about_all",
           never("Contents"), "tests/test_recovery.py"),
    Mutant("sources are not checked before a master is written", "a master over missing files: NaN for every plain reader",
           A + "hub.master:_check_sources", never("is_file"), "tests/test_store.py"),
    Mutant("a closed file is not read back", "the disk wrote other bytes than it was given: the closed file is wrong for ever",
           A + "hub.master:_read_back", returns("iter(())"), KILLS + "spoiled"),
    Mutant("leases never end", "a worker that hangs keeps its projection for ever", A + "hub.workers:Workers.expire",
           never("deadline_s"), "tests/test_queue.py"),
    Mutant("what waits for a worker is charged with it", "three deaths over another projection put a sound one aside", A + "hub.workers:Workers._lose",
           never("waits"), "tests/test_queue.py -k charged"),
    Mutant("what waits for a slow worker runs out", "its projections are handed out twice, and charged", A + "hub.in_flight:InFlight.renew",
           without_loop("self.held_by"), "tests/test_queue.py -k slow"),
    Mutant("late results count", "a result of a lease that has ended is stored beside the new one's", A + "hub.in_flight:InFlight.find_job",
           anything("job_id"), "tests/test_in_flight.py tests/test_queue.py"),
    Mutant("deaths are not counted", "a projection that kills every worker is tried for ever", A + "hub.ledger:Ledger.charge",
           reworded("attempts + 1", "0"), "tests/test_queue.py"),
    Mutant("results of any shape are taken", "a worker of another version spoils the series", A + "hub.workers:_wrong",
           never("shape"), "tests/test_queue.py"),
    Mutant("no completeness check", "a file that still grows is called broken, or taken as it is", A + "readers:need",
           never("have"), "tests/test_readers.py -k incomplete"),
    Mutant("no checksum on the queue", "pixels that were damaged on the way are stored", A + "transport:_array",
           never("crc32"), "tests/test_transport.py"),
    Mutant("credit without end", "ten thousand waiting files are all read into memory", A + "hub.in_flight:InFlight.grantable",
           never("credit"), "tests/test_in_flight.py"),
    Mutant("a full disk ends the hub's patience", "what is in hand is thrown away when the disk is full", A + "durable:disk_errors",
           catches("MemoryError"), "tests/test_recovery.py tests/test_queue.py"),
    Mutant("excluded rows count", "a volume, the preview and exports are made with what a person has excluded", A + "layout:counting",
           returns("file[PER_PROJECTION + '/blank'][()] == 0"), WORD),
    Mutant("excluded rows bind the laws", "coverage, repeats and the laws of the series count what a person has excluded",
           A + "hub.decisions:Decisions.excluded", returns("{}"), WORD),
    Mutant("a person's word is not durable", "said, shown, and forgotten with the ledger or at the next start", A + "hub.chosen:Chosen.decide",
           without("decided.write"), WORD),
    Mutant("an exclusion is for ever", "restore does nothing", A + "hub.archive:Archive.restore", without("self.decide"), WORD),
    Mutant("a survey binds its series", "one image at another magnification came first: every projection is held", A + "hub.odd:Odd.look",
           returns("None"), ODD),
    Mutant("who is done first decides", "of several workers or images handed over at once, another than the first of a series binds it",
           A + "hub.in_flight:InFlight.follows", returns("False"), ODD),
    Mutant("any other frame is set aside", "two images at one tilt, or two that do not agree, set a projection aside", A + "judging:_agree",
           returns("True"), ODD),
    Mutant("held because of a survey for ever", "killed between the decision and reading again: projections stay held",
           A + "hub.odd:Odd._look", never("free"), KILLS + "odd"),
    Mutant("a person's word on an odd one is overruled", "restored, it is set aside again", A + "judging:Rows.lone",
           reworded("person", "nobody"), ODD),
    Mutant("what no row shows is not kept", "the pixels of a survey of another size are lost with its projection file",
           A + "hub.master:_write_apart", returns("None"), ODD),
    Mutant("a discarded one is not ended", "it is held again, and --strict fails on it", A + "hub.ledger:Ledger.discard",
           reworded("discarded", "held"), "tests/behaviour/test_editions.py -k said"),
    Mutant("pruned while it is open", "a master over files that are gone: zeros for every reader, and nothing to close",
           A + "hub.closed_file:ClosedFile._look", never("is_virtual"), PRUNING + "open_series"),
    Mutant("pruned as soon as it is closed", "who opened it before reads zeros, without an error", A + "hub.retention:Retention.prune",
           anything("_grace_s"), PRUNING + "grace"),
    Mutant("a clock that is set makes a series old", "the same, after a night in which the clock was wrong", A + "hub.retention:Retention._age_s",
           returns("self._timing.unix_s() - closed_at"), PRUNING + "grace"),
    Mutant("pruned while a step waits", "a volume, films or a program of somebody's find files gone that they were going to read",
           A + "hub.retention:Retention._hindrance", never("waiting"), PRUNING + "to_be_done"),
    Mutant("pruned before edition 1 has a file", "once another edition is shown, edition 1 is nowhere", A + "hub.pruning:_keep_first",
           returns("iter(())"), PRUNING + "as_it_was"),
    Mutant("pruned before edition 1 was verified", "a file of edition 1 that was damaged since takes the place of the sound ones",
           A + "hub.pruning:_keep_first", without_loop("edition.reading_back"), PRUNING + "damaged"),
    Mutant("pruned unseen", "a closed file that was damaged since is all that is left", A + "hub.pruning:_compare", returns("None"), PRUNING + "damaged"),
    Mutant("single frames are not kept", "what projection files have beside the planes goes with them", A + "layout:extras_of", returns("[]"),
           PRUNING + "beside_a_mean"),
    Mutant("a late projection does not end a pruning", "files of a series that is open again are removed one by one", A + "hub.archive:Archive.commit",
           reworded("prune", "nothing"), PRUNING + "while_a_series_is_pruned"),
    Mutant("a pruned series is opened without its files", "a late projection is never shown, or beside nothing", A + "hub.store:SeriesStore.unpacking",
           returns("iter(())"), PRUNING + "as_it_was"),
    Mutant("a closed file that was not taken up is replaced", "raw is gone where edition 1 was lost", A + "hub.store:SeriesStore.write_master",
           never("_to_keep"), PRUNING + "raw_is_kept"),
)  # fmt: skip


def caught(mutant: Mutant, folder: Path) -> bool:
    """Does the named suite turn red? Raises ValueError when the mutant no longer fits the code."""
    copy = folder / "mutant"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("aet_stream", "tests"):
        shutil.copytree(HERE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "config.toml", "README.md"):
        shutil.copy(HERE / name, copy)
    (copy / mutant.file).write_text(broken(mutant))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *shlex.split(mutant.suite)]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ValueError(f"mutant {mutant.name!r}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return done.returncode == 1
