"""What a person asks of the daemon, with it running or down."""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec

from aet_stream.cli.common import Add, new_file, output_root, settings
from aet_stream.errors import AetError, NotRunning
from aet_stream.naming import shown
from aet_stream.service import EXIT_OK, Stop, be_a_child
from aet_stream.status import LedgerStatus, Status


def add_commands(add: Add) -> None:
    status = add("status", _status, "what is in flight, stored, held, quarantined")
    status.add_argument("--json", action="store_true", help="for machines")
    top = add("top", _top, "status that keeps itself up to date, for a terminal")
    top.add_argument("--once", action="store_true", help="show it once and end")
    report = add("report", _report, "one page about a series: what was done, figures, pictures, what was held")
    report.add_argument("series", type=Path, metavar="SERIES.h5")
    report.add_argument("--out", type=new_file, metavar="FILE", help="default: report.html beside the series")
    report.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    close = add("close", _close, "close a series: one contiguous verified file")
    close.add_argument("series", metavar="SERIES")
    prune = add("prune", _prune, "remove the projection files of closed series: raw and every edition stay")
    prune.add_argument("series", nargs="+", metavar="SERIES")
    prune.add_argument("--now", action="store_true", help="before output.prune_after_h: no program has it open since before it was closed")
    requeue = add("requeue", _requeue, "try held or quarantined projections again")
    requeue.add_argument("ids", nargs="+", type=int, metavar="ID")
    release = add("release", _release, "give held projections their tilt angle")
    release.add_argument("ids", nargs="+", type=int, metavar="ID")
    release.add_argument("--angle", type=float, required=True, metavar="DEG", help="with a point, no comma: --angle -34.5")
    exclude = add("exclude", _exclude, "leave stored projections out of volumes, laws and advice from now on")
    exclude.add_argument("ids", nargs="+", type=_any_id, metavar="ID", help="SERIES:NUMBER, as the page shows it; or as `status` does")
    exclude.add_argument("--reason", required=True, metavar="TEXT", help="why, in your words")
    restore = add("restore", _restore, "take back what was excluded or discarded")
    restore.add_argument("ids", nargs="+", type=_any_id, metavar="ID", help="as for exclude, discard")
    discard = add("discard", _discard, "end held projections that nobody wants")
    discard.add_argument("ids", nargs="+", type=int, metavar="ID")
    discard.add_argument("--reason", default="by hand", metavar="TEXT", help="why, in your words")
    events = add("events", _events, "what happened, and who has been told")
    events.add_argument("--failed", action="store_true", help="only what was tried too often")
    events.add_argument("--json", action="store_true", help="for machines")
    resend = add("resend", _resend, "send failed events again")
    resend.add_argument("ids", nargs="*", metavar="EVENT", help="ids as `events` shows them (default: all that failed)")


def _status(arguments: argparse.Namespace) -> int:
    """Show what is in flight, stored, held and quarantined. Works with the daemon down too: then from its ledger alone."""
    from aet_stream.transport import ask

    root = output_root(arguments)
    status: LedgerStatus
    try:
        said = {"daemon": "running", **ask(root, "status", timeout_s=2.0)}
        status = msgspec.convert(said, Status)
    except NotRunning:
        status = _from_ledger(root)
        said = {"daemon": "not running", **msgspec.to_builtins(status)}
    print(json.dumps(said, indent=2) if arguments.json else _status_text(said["daemon"], status))
    return EXIT_OK


def _top(arguments: argparse.Namespace) -> int:
    """Show the state of the acquisition and keep it up to date until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from aet_stream.monitor.terminal import glance
    from aet_stream.transport import ask

    root, expected = output_root(arguments), settings(arguments).series.expected

    def now() -> Any:
        try:
            return glance(msgspec.convert(ask(root, "status", timeout_s=2.0), Status), expected=expected)
        except NotRunning:
            return glance(None)

    if arguments.once or not Console().is_terminal:
        Console().print(now())
        return EXIT_OK
    stop = Stop()
    stop.catch_signals()  # an exception out of nowhere may come where it is swallowed, in the clearing up of a socket
    with Live(now(), screen=True, auto_refresh=False) as live:
        while not stop.asked:
            time.sleep(1.0)
            live.update(now(), refresh=True)
    raise KeyboardInterrupt


def _report(arguments: argparse.Namespace) -> int:
    """Write a report of a series as one HTML file that any browser can show, print or keep."""
    if arguments.supervised:
        be_a_child()
    from aet_stream import durable
    from aet_stream.monitor.report import of_series
    from aet_stream.monitor.series_cache import SeriesCache

    path = arguments.series.absolute()
    if path.name != "series.h5":
        raise AetError(f"{arguments.series}: name the series.h5 of a series")
    target = arguments.out or path.with_name("report.html")
    if target.suffix not in (".html", ".htm"):
        raise AetError(f"--out {target}: a report is HTML; name a file ending in .html")
    root = path.parent.parent
    status: LedgerStatus | None
    try:
        status = _from_ledger(root, path.parent.name)
    except AetError:
        status = None  # a series that was copied elsewhere has no ledger
    page = of_series(SeriesCache(root), path.parent.name, settings(arguments).advice, status)
    durable.replace(target, page.encode())
    print(target)
    return EXIT_OK


def _from_ledger(root: Path, series: str | None = None) -> LedgerStatus:
    from aet_stream.hub.ledger import Ledger, summary

    path = root / "ledger.sqlite"
    if not path.exists():
        raise NotRunning(f"{root} has no ledger: nothing has ever run there; start with `aet-stream run`")
    try:
        ledger = Ledger(path, read_only=True)
        return summary(ledger, series)
    except sqlite3.Error as error:
        raise AetError(f"{path}: {error}; `aet-stream run` rebuilds it from the projection files") from error


def _status_text(daemon: str, status: LedgerStatus) -> str:
    """One glance."""
    from aet_stream.monitor import words

    live = status if isinstance(status, Status) else None
    lines = [f"daemon {daemon}" + (f"  PAUSED: {live.paused}" if live and live.paused else "")]
    if live:
        there = Status(roles=live.roles, disk_free_bytes=live.disk_free_bytes)
        lines += [f"NOT WORKING  {trouble}" for trouble in words.troubles(there, 0.0)]
        lines += [f"PLEASE LOOK  {concern}" for concern in words.concerns(there)]
    lines.append("  ".join(f"{count} {name}" for name, count in msgspec.structs.asdict(status.totals).items()))
    for name, role in sorted(live.roles.items()) if live else ():
        stale = f"  silent for {role.age_s:.0f} s" if role.age_s > 5 else ""
        lines.append(f"  {name:<11} pid {role.pid}{stale}")
    lines += [f"  {line}" for line in words.workers(live)] if live else []
    for series in status.series[:10]:
        tilt = "" if series.last_tilt_deg is None else f", last tilt {series.last_tilt_deg:+.2f} deg"
        excluded = f" ({series.excluded} of them excluded)" if series.excluded else ""
        pruned = ", pruned" if series.pruned_at else ""
        lines.append(f"series {series.name}: {series.state}{pruned}, {series.stored} stored{excluded}{tilt}")
    if len(status.series) > 10:
        lines.append(f"and {len(status.series) - 10} older series: --json names them")
    for name, tilts in live.planned_missing_deg.items() if live else ():
        if tilts:
            lines.append(f"  {name} lacks {len(tilts)} planned tilts: {', '.join(f'{tilt:g}' for tilt in tilts[:12])}")
    for path, complaint in live.watch.waiting_for.items() if live and live.watch else ():
        lines.append(f"WAITING      {path}: {complaint or 'for its writer'}")
    lines += [f"LEFT OUT     {note}" for note in words.notes(status, most=20)]
    if total := status.latency.stages.get("total"):
        stages = ", ".join(f"{name} {times.p50_s:.3f}" for name, times in status.latency.stages.items() if name != "total")
        lines.append(f"file closed to readable: median {total.p50_s:.3f} s, 99 % {total.p99_s:.3f} s (median by stage: {stages})")
    for blank in status.blank:
        lines.append(
            f"BLANK        {blank.id:>5}  {blank.path}[{blank.image}] at {blank.tilt_deg:+.2f} deg: every pixel has the same value"
        )
    for state, rows in (("HELD", status.held), ("QUARANTINED", status.quarantined), ("ODD", status.odd)):
        lines += [f"{state:<11}  {row.id:>5}  {row.path}[{row.image}]: {row.reason}" for row in rows]
    if older := words.unlisted(status):
        lines.append(f"and {older} older ones, which are named here when these are dealt with")
    where = words.output_setting(status)
    verbs = {row.command.partition(" ")[0] for row in status.held}
    if "release" in verbs:
        lines.append(f"give a held projection its angle: aet-stream release ID --angle DEG{where}")
    if "requeue" in verbs:
        lines.append(f"where a setting has to be corrected, do it, start the daemon again, then: aet-stream requeue ID{where}")
    if status.quarantined:
        lines.append(f"mend or replace a quarantined file and it is read again; or: aet-stream requeue ID{where}")
    if status.odd:
        lines.append(
            f"if an odd one shall not count: aet-stream exclude ID --reason TEXT{where}; if it shall: aet-stream restore ID{where}"
        )
    for dead in status.events.dead:
        lines.append(f"FAILED       {dead.event} of {dead.series} -> {dead.sink} ({dead.attempts} tries): {dead.detail}")
    if status.events.dead:
        lines.append(f"mend the cause and send failed events again: aet-stream resend{where}")
    return "\n".join(shown(line) for line in lines)


def _close(arguments: argparse.Namespace) -> int:
    """Close a series now: one contiguous file, verified against the projection files, then its reconstruction."""
    from aet_stream.transport import ask_until_done

    root, name = output_root(arguments), arguments.series
    ask_until_done(root, "close", {"series": name})
    print(f"{name} is closed: {root / name / 'series.h5'}")
    return EXIT_OK


def _prune(arguments: argparse.Namespace) -> int:
    """Remove the projection files of closed series, after all that they hold was found in series.h5 and editions/01.h5, byte by byte."""
    from aet_stream.transport import ask_until_done

    root = output_root(arguments)
    for name in arguments.series:
        print(ask_until_done(root, "prune", {"series": name, "now": arguments.now})["text"])
    return EXIT_OK


def _requeue(arguments: argparse.Namespace) -> int:
    """Read held or quarantined projections again, for example after mending the file. IDs as `status` shows them."""
    from aet_stream.transport import ask

    print(ask(output_root(arguments), "requeue", {"ids": arguments.ids})["text"])
    return EXIT_OK


def _release(arguments: argparse.Namespace) -> int:
    """Give held projections the tilt angle that no source could. IDs as `status` shows them."""
    from aet_stream.transport import ask

    print(ask(output_root(arguments), "release", {"ids": arguments.ids, "tilt_deg": arguments.angle})["text"])
    return EXIT_OK


def _any_id(text: str) -> int | str:
    """The number of a visit, or SERIES:NUMBER of a stored projection."""
    if text.isdecimal():
        return int(text)
    if not text.rpartition(":")[0] or not text.rpartition(":")[2].isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: SERIES:NUMBER is needed, or a number that `status` shows")
    return text


def _exclude(arguments: argparse.Namespace) -> int:
    """Leave stored projections out of volumes, previews, exports, laws and advice. Nothing is deleted: the row stays, with reason and time
    in /aet/projection/excluded*. Done when readers see it.
    """
    return _decide(arguments, "exclude", {"ids": arguments.ids, "reason": arguments.reason})


def _restore(arguments: argparse.Namespace) -> int:
    """Let excluded projections count again, and read discarded ones again."""
    return _decide(arguments, "restore", {"ids": arguments.ids})


def _decide(arguments: argparse.Namespace, command: str, what: dict[str, Any]) -> int:
    """Of a closed series that takes as long as writing it anew."""
    from aet_stream.transport import ASK_AGAIN_S, ask, ask_until_done

    root = output_root(arguments)
    answer = ask_until_done(root, command, what)
    while not ask(root, "settled", {"series": answer["series"]})["settled"]:
        time.sleep(ASK_AGAIN_S)
    print(answer["text"])
    return EXIT_OK


def _discard(arguments: argparse.Namespace) -> int:
    """End held projections that nobody wants: they are listed no more, and `--strict` does not mind them. Their files stay, and
    `aet-stream restore ID` has them read again.
    """
    from aet_stream.transport import ask

    print(ask(output_root(arguments), "discard", {"ids": arguments.ids, "reason": arguments.reason})["text"])
    return EXIT_OK


def _events(arguments: argparse.Namespace) -> int:
    """List the deliveries of the outbox, the latest event first: from the ledger, with or without a daemon."""
    from aet_stream.hub.ledger import Ledger
    from aet_stream.hub.outbox import Outbox

    path = output_root(arguments) / "ledger.sqlite"
    if not path.exists():
        raise NotRunning(f"{path} is not there: nothing has ever run; start with `aet-stream run`")
    ledger = Ledger(path, read_only=True)
    rows = Outbox(ledger.db).listed("failed" if arguments.failed else None)
    ledger.close()
    if arguments.json:
        print(json.dumps(rows, indent=2))
    for row in [] if arguments.json else rows:
        tries = f"{row['attempts']} tries" if row["attempts"] != 1 else "1 try"
        print(shown(f"{row['event_id']}  {row['event']:<19} {row['series']} -> {row['sink']}: {row['state']}, {tries}  {row['detail']}"))
    return EXIT_OK


def _resend(arguments: argparse.Namespace) -> int:
    """Send events again that were put aside after too many tries."""
    from aet_stream.transport import ask

    print(ask(output_root(arguments), "resend", {"ids": arguments.ids or None})["text"])
    return EXIT_OK
