"""docs/durability.md, from what the campaigns found."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.durability import matrix
from tests.durability.mutants import HERE, MUTANTS
from tests.durability.orphans import GONE_S, LONGEST_LIFE_S

HEAD = """# Nothing lost, nothing doubled: what was tried, and what it found

Written by `python -m tests.durability report` from the results of {dates}; `make durability` makes them anew (seed {seeds}). What is
promised stands in [how it works](architecture.md); how it is tried, in `tests/durability/`. The judge (`oracle.py`) looks only at source
files, plain HDF5 and quarantine records, and knows every pixel by construction.
"""


def lines(results: Path) -> list[dict[str, Any]]:
    """Everything that was kept."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def write(results: Path) -> Path:
    """Make the page; returns where it lies."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines(results):
        found.setdefault(line["part"], []).append(line)
    every = [line for part in found.values() for line in part]
    dates = sorted({line["date"] for line in every})
    text = HEAD.format(
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))), seeds=", ".join(sorted({str(line["seed"]) for line in every}))
    )
    text += "".join(section(found[name]) for name, section in SECTIONS.items() if name in found)
    page = HERE / "docs" / "durability.md"
    text += _of_before(page.read_text(), text) if page.exists() else ""
    page.write_text(text)
    return page


def _of_before(page: str, made: str) -> str:
    """Sections of the page as it stands that were not made anew, and of when they are."""
    dates = re.findall(r"from the results of ([-0-9a-z ]+)[;:]", page)
    _, *sections = re.split(r"(?m)^(?=## )", re.sub(r"(?ms)^---$.*?:$\n\n", "", page))
    kept = [section for section in sections if section.splitlines()[0] not in made.splitlines()]
    return f"\n---\n\nOf earlier code, from the results of {' and '.join(dates)}:\n\n" + "".join(kept) if kept else ""


def _bad(words: list[str]) -> str:
    return "" if not words else "\n" + "".join(f"- {word}\n" for word in words[:30])


def _matrix(found: list[dict[str, Any]]) -> str:
    wrong = [f"{line['case']}: {'; '.join(line['wrong'])}" for line in found if line["wrong"]]
    by_fault = Counter(line["case"].split("=")[1] for line in found)
    places = len({line["case"].split("@")[0] for line in found})
    happened = sum(line["reached"] for line in found)
    rows = "".join(f"| {fault} | {count} |\n" for fault, count in sorted(by_fault.items()))
    return f"""
## Every place, every fault

{len(found)} cases of {len(matrix.cells())} run so far: {places} named places of the commit path (`aet_stream/failpoints.py`), each with the faults below, at the first, second and
fifth time. In {happened} of them the place was reached often enough for the fault to happen. After the next start: **{len(wrong)} cases with anything
lost, doubled, changed, wrongly quarantined or left over.**

| fault | cases |
| --- | --- |
{rows}{_bad(wrong)}"""


def _campaign(found: list[dict[str, Any]]) -> str:
    kills: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for line in found:
        kills.update(line["kills"])
        kinds.update(line["kinds"])
    total = {key: sum(line[key] for line in found) for key in ("inputs", "stored", "duplicates", "quarantined", "seconds")}
    polls = {key: sum(line["readers"][key] for line in found) for key in ("polls", "opened", "bad")}
    wrong = [word for line in found for word in (*line["wrong"], *line["verify"], *line["readers"]["words"])]
    rows = "".join(f"| {role} | {count} |\n" for role, count in sorted(kills.items()))
    files = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"""
## Random kills

{len(found)} campaigns ({"; ".join(line["case"] for line in found)}), {total["seconds"]} s in all: **{sum(kills.values())} SIGKILLs** at random moments, start-up
included, over real roles; {total["inputs"]} files ({files}). Found: {total["stored"]} stored, {total["duplicates"]} duplicates, {total["quarantined"]} quarantined;
**{len(wrong)} wrong**. Plain readers polled {polls["polls"]} times, opened {polls["opened"]} times: **{polls["bad"]} failures**.

| killed | times |
| --- | --- |
{rows}{_bad(wrong)}"""


def _orphans(found: list[dict[str, Any]]) -> str:
    there: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for line in found:
        there.update(line["there"])
        left.update(line["left"])
    inputs, kills = (sum(line[key] for line in found) for key in ("inputs", "kills"))
    wrong = [word for line in found for word in line["wrong"]]
    roles = ", ".join(f"{count} {name}" for name, count in sorted(there.items()))
    return f"""
## Nobody outlives a supervisor

**{kills} supervisors** killed (SIGKILL) at a random moment of their first {LONGEST_LIFE_S:g} s, beside two loops that want all of two processors. There were then
{sum(there.values())} processes ({roles}); after {GONE_S:g} s **{sum(left.values())}** of them. {inputs} files meanwhile: **{len(wrong)} wrong**.
{_bad(wrong)}"""


def _states(title: str, what: str) -> Any:
    def section(found: list[dict[str, Any]]) -> str:
        outcomes = Counter(line["outcome"].split(":")[0] for line in found)
        wrong = [f"{line['state']}: {line['outcome']}" for line in found if not line["outcome"].startswith(("recovered", "refused"))]
        refused = outcomes["refused"]
        return f"""
## {title}

{what} {len(found)} states so far: {outcomes["recovered"]} recovered, {refused} refused aloud, **{len(wrong)} silently wrong**.
{_bad(wrong)}"""

    return section


def _mutants(found: list[dict[str, Any]]) -> str:
    caught = {line["case"]: line["caught"] for line in found}
    rows = "".join(
        f"| {mutant.name} | {mutant.stands_for} | {'caught' if caught[mutant.name] else 'NOT CAUGHT'} |\n"
        for mutant in MUTANTS
        if mutant.name in caught
    )
    return f"""
## Would it notice?

Safety code is broken on purpose, one place at a time (`tests/durability/mutants.py`): of {len(MUTANTS)} mutants {len(caught)} were
tried so far, **{sum(caught.values())} caught**.

| broken | stands for | by the tests |
| --- | --- | --- |
{rows}"""


def _soak(found: list[dict[str, Any]]) -> str:
    text = "\n## A long time at full speed\n"
    for line in found:
        rows = "".join(
            f"| {role} | {f['rss_mib'][0]} / {f['rss_mib'][1]} | {f['descriptors'][0]} / {f['descriptors'][1]} | {f['threads'][0]} / {f['threads'][1]} |\n"
            for role, f in line["roles"].items()
        )
        text += f"""
{line["seconds"]} s, {line["stored"]} projections stored. The largest value in the second third / in the last third:

| role | resident MiB | descriptors | threads |
| --- | --- | --- | --- |
{rows}
The watch keeps a record of every file that lies in the watched folder, some 1 to 2 kB each: with thousands of new files an hour it grows by that.
"""
    return text


def _fsync(found: list[dict[str, Any]]) -> str:
    medians = found[-1]["medians_ms"]
    rows = "".join(f"| {name} | {value} |\n" for name, value in medians.items())
    return f"""
## What safety costs

Frames of 1024 x 1024, with and without fsync in turn within one run; medians of {found[-1]["frames"]}, on a machine that did nothing else.

| step | ms |
| --- | --- |
{rows}"""


SECTIONS = {
    "matrix": _matrix,
    "campaign": _campaign,
    "orphans": _orphans,
    "kill": _states(
        "Killed between any two operations",
        "Every file operation of short lives is recorded; the disk after each, and after parts of each write.",
    ),
    "power": _states(
        "Power cut",
        "After each operation, what was not synced is dropped, cut, torn into blocks or kept at random, names and contents apart; now and then the ledger is gone too.",
    ),
    "mutants": _mutants,
    "soak": _soak,
    "fsync": _fsync,
}
