"""The watched folder, and what lies in it; the output folder, its disk, and the ledger."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from aet_stream import durable
from aet_stream.doctor.finding import Finding, Station, fail, ok, warn
from aet_stream.errors import AetError
from aet_stream.layout import PROJECTIONS, SERIES_FILE
from aet_stream.naming import RESERVED, shown
from aet_stream.watch.events import file_system, network_file_system

SKEW_S = 5.0
PROBE_BYTES = 32 << 20
SLOW_MIB_S = 20.0
SLOW_SYNC_S = 0.5
_MEMORY = ("tmpfs", "ramfs")
_IN_CLOEXEC, _IN_CREATE = 0o2000000, 0x100


# -- the watched folder -----------------------------------------------------------------------------------------------------------


def watched(station: Station) -> Iterator[Finding]:
    """Is it there, and may this user look into it? A share tells of no events: it is scanned."""
    if not station.has_watch:
        return
    root = station.config.watch_root
    try:
        root.stat()
    except OSError as error:
        yield fail(f"{root}: {error.strerror}", "mount or make it, or correct watch.root")
        return
    if not root.is_dir():
        yield fail(f"{root} is no folder", "correct watch.root")
        return
    if not os.access(root, os.R_OK | os.X_OK):
        yield fail(f"{root} cannot be read by user {_user()}", f"give it read access: setfacl -R -m u:{_user()}:rX {root}")
        return
    walk = station.walk
    for place in walk.refused[:3]:
        yield fail(f"{shown(place)} cannot be looked into by user {_user()}", f"setfacl -R -m u:{_user()}:rX {shown(place)}")
    kind, network = file_system(root), network_file_system(root)
    many = "" if walk.whole else "more than "
    found = f"{root} on {kind or 'an unknown file system'}: {many}{walk.folders} folder(s), {walk.files} file(s)"
    yield ok(f"{found}; a network share, scanned every {station.config.watch.scan_s:g} s" if network else found)


def clock(station: Station) -> Iterator[Finding]:
    """Files from the future: the microscope's clock is ahead, and ages (settling, `newer_than`) go wrong."""
    if not station.has_watch or not station.config.watch_root.is_dir():
        return
    newest = station.walk.newest
    ahead_s = newest[0][0] - time.time() if newest else 0.0
    if ahead_s > SKEW_S:
        yield warn(
            f"{shown(str(newest[0][1]))} was written {ahead_s:.0f} s from now: its computer's clock is ahead of this one's",
            "set both clocks by the same server (chrony, w32time)",
        )
    else:
        yield ok("no file comes from the future" if newest else "no image there yet to compare with")


def events(station: Station) -> Iterator[Finding]:
    """inotify: an instance for this user, and a watch for every folder."""
    root = station.config.watch_root
    if not station.has_watch or not station.config.watch.events or not root.is_dir():
        return
    if network_file_system(root):
        yield ok("not used on a network share")
        return
    remedy = "sysctl fs.inotify.{}={}; to keep it: a file in /etc/sysctl.d. Until then the scan alone finds files, up to {:g} s later"
    scan_s = station.config.watch.scan_s
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(_IN_CLOEXEC)
    if descriptor < 0:
        if ctypes.get_errno() != errno.EMFILE:
            yield warn(f"inotify: {os.strerror(ctypes.get_errno())}", "watch.events = false says that none are wanted")
            return
        yield warn(f"no inotify instance is left for user {_user()}", remedy.format("max_user_instances", 1024, scan_s))
        return
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(root), _IN_CREATE) < 0:
            yield warn(f"no inotify watch is left for user {_user()}", remedy.format("max_user_watches", 524288, scan_s))
            return
    finally:
        os.close(descriptor)
    folders, most = station.walk.folders, _number("/proc/sys/fs/inotify/max_user_watches")
    if most is not None and folders > most // 2:
        yield warn(
            f"{folders} folders below {root}, {most} may be watched by all of this user's programs",
            remedy.format("max_user_watches", max(524288, 4 * folders), scan_s),
        )
    else:
        yield ok(f"{folders} of {most or 'unknown'} watches needed")


def layout(station: Station) -> Iterator[Finding]:
    """What would become of the newest files: as `aet-stream check` sees them."""
    if not station.has_watch or not station.config.watch_root.is_dir():
        return
    from aet_stream.foresight import STORED, Foresight
    from aet_stream.readers.child import ReaderChild

    newest = [path for _, path in station.walk.newest]
    if not newest:
        yield ok("no image there yet; `aet-stream check FILE` says what would be done with one of yours")
        return
    reader = ReaderChild.of(station.config)
    try:
        foresight, verdicts = Foresight(reader, station.config), Counter[str]()
        for folder in dict.fromkeys(path.parent for path in newest):
            told = foresight.of(folder, [path.name for path in newest if path.parent == folder])
            verdicts.update(verdict for verdict, _ in told if verdict)
    except AetError as error:
        yield fail(str(error), "correct that setting")
        return
    finally:
        reader.close()
    said = f"of the newest {sum(verdicts.values())} images " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    if set(verdicts) <= {STORED, "would be recorded as a duplicate"}:
        yield ok(said)
    else:
        yield warn(
            said,
            f"`aet-stream check {quote(str(newest[0].parent))}` says why for each;"
            " mostly angle.filename_regex, series.by or series.detector",
        )


# -- the output folder ------------------------------------------------------------------------------------------------------------


def output(station: Station) -> Iterator[Finding]:
    """A local disk that this user may write to, which keeps what it was given and gives it a name at once."""
    if not station.has_output:
        return
    root = station.config.output_root
    there = next(level for level in (root, *root.parents) if level.exists())
    if not there.is_dir():
        yield fail(f"{there} is no folder", "correct output.root")
        return
    if network := network_file_system(there):
        yield fail(f"{root} lies on {network}, a network share: locks and fsync mean nothing there", "put output.root on a local disk")
        return
    if (kind := file_system(there)) in _MEMORY:
        yield fail(f"{root} lies in memory ({kind}): it is gone when the power is", "put output.root on a disk")
    elif os.statvfs(there).f_flag & os.ST_RDONLY:
        yield fail(f"{there} is mounted read-only", "mount -o remount,rw; `dmesg` says whether the kernel did that because the disk fails")
        return
    elif not os.access(there, os.W_OK | os.X_OK):
        owner = f"chown {_user()} {root}" if there == root else f"install -d -o {_user()} {root}"
        yield fail(f"{there} cannot be written to by user {_user()}", f"{owner}; in a service also ReadWritePaths={root}")
        return
    try:
        mib_s, sync_s = _speed(there)
    except OSError as error:
        yield fail(f"{there}: {error.strerror}", "mend the disk or the mount: a file must be written, synced, renamed and synced again")
        return
    said = f"{there} on {kind or 'an unknown file system'}: {mib_s:.0f} MiB/s with fsync, a small file is safe after {1e3 * sync_s:.0f} ms"
    if mib_s < SLOW_MIB_S or sync_s > SLOW_SYNC_S:
        yield warn(said, "put output.root on a faster disk (SSD), or end what else writes there")
    else:
        yield ok(said)


def _speed(folder: Path) -> tuple[float, float]:
    """(MiB/s of one large file, seconds until a small one is safe), by the protocol of a commit; nothing is left behind."""
    draft, final = folder / f".doctor.{os.getpid()}.tmp", folder / f".doctor.{os.getpid()}.probe"
    took_s = []
    try:
        for content in (os.urandom(1 << 20) * (PROBE_BYTES >> 20), b"x"):
            began = time.perf_counter()
            durable.write_synced(draft, content)
            durable.put_in_place(draft, final)
            took_s.append(time.perf_counter() - began)
    finally:
        for path in (draft, final):
            path.unlink(missing_ok=True)
    return PROBE_BYTES / 2**20 / took_s[0], took_s[1]


_MORE_ROOM = "make room on the disk of output.root, prune closed series (`aet-stream prune`, output.prune), or move old ones away"


def room(station: Station) -> Iterator[Finding]:
    """Free space in series: raw, clean, and both once more in the closed file."""
    if not station.has_output:
        return
    root, config = station.config.output_root, station.config
    there = next(level for level in (root, *root.parents) if level.is_dir())
    free = shutil.disk_usage(there).free
    inodes = os.statvfs(there)
    if inodes.f_files and inodes.f_favail < 10_000:
        yield fail(f"{inodes.f_favail} inodes left on the disk of {root}: no new files", "remove small files, or make the file system anew")
    series = _series_bytes(root) or 2 * 60 * 1024 * 1024 * 8
    fit = int(free // series)
    said = f"{free / 1e9:.1f} GB free: {fit} more series of {series / 1e9:.1f} GB"
    if free < config.output.keep_free_mib << 20:
        kept = config.output.keep_free_mib / 1024
        yield fail(f"{said}; below the {kept:.1f} GiB that are kept free, nothing is accepted", _MORE_ROOM)
    elif fit < 5:
        yield warn(said, _MORE_ROOM)
    else:
        yield ok(said)


def _series_bytes(root: Path) -> int:
    """Of the largest of the latest series there, as it was when it was closed; 0: none."""
    try:
        folders = [entry for entry in os.scandir(root) if entry.is_dir() and entry.name not in RESERVED]
    except OSError:
        return 0
    latest = sorted(folders, key=lambda entry: entry.stat().st_mtime)[-5:]
    return max((_bytes_when_closed(Path(entry.path)) for entry in latest), default=0)


def _bytes_when_closed(folder: Path) -> int:
    """Of a series that was pruned since, with projection files as large as its one file."""
    series = folder / SERIES_FILE
    pruned = series.exists() and not any((folder / PROJECTIONS).glob("*.h5"))
    return _bytes_below(folder) + (series.stat().st_size if pruned else 0)


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


def ledger(station: Station) -> Iterator[Finding]:
    """Can it be read, whole?"""
    if not station.has_output or not (path := station.config.output_root / "ledger.sqlite").exists():
        return
    from aet_stream.hub.ledger import fault

    if wrong := fault(path):
        remedy = "restart the daemon: it sets a damaged ledger aside and makes a new one from the projection files"
        yield fail(f"{path}: {wrong}", remedy)
    else:
        yield ok(f"{path}: sound")


def owners(station: Station) -> Iterator[Finding]:
    """Everything under `output.root` belongs to whoever writes there: one run as root leaves files that the service cannot replace."""
    root = station.config.output_root
    if not station.has_output or not root.is_dir():
        return
    places = (root, root / "run", *(root / "run" / "keys").glob("*"), root / "ledger.sqlite", root / "quarantine")
    foreign = [path for path in places if path.exists() and path.stat().st_uid != root.stat().st_uid]
    if foreign:
        owner = root.stat().st_uid
        yield fail(f"{foreign[0]} belongs to uid {foreign[0].stat().st_uid}, {root} to uid {owner}", f"chown -R {owner} {root}")
    elif os.geteuid() not in (0, root.stat().st_uid) and not stat.S_IMODE(root.stat().st_mode) & 0o022:
        yield warn(
            f"{root} belongs to uid {root.stat().st_uid}, you are {_user()}", "run the doctor as the daemon's user: sudo -u aet-stream"
        )
    else:
        yield ok(f"all of uid {root.stat().st_uid}")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
