"""A real systemd, booted in namespaces of its own: its units are ours alone, what it may write is in memory or the test's.

Needs root and a cgroup2 hierarchy. The machine's own /etc, /var, /run, /tmp and units are not touched: it sees copies or empty ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness import wait_for

SYSTEMD = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "local-fs", "remote-fs", "multi-user", "shutdown", "booted", "umount")
NAMESPACES = ("-m", "-u", "-i", "-p", "-C", "-n")

BOOT = """set -e
echo $$ > {cgroup}/cgroup.procs
exec unshare {namespaces} -f --kill-child sh -c '
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc && rm -rf /mnt/etc/systemd && mkdir -p /mnt/etc/systemd/system /mnt/units
for target in {targets}; do printf "[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n" > /mnt/units/$target.target; done
mount --bind /mnt/etc /etc
mount --bind /mnt/units /lib/systemd/system
for folder in /var /opt /run /lib/systemd/system-generators; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lock /run/credstore /opt/data /etc/systemd/system/service.d /var/lib
mount --bind {data} /opt/data
mount -t tmpfs -o mode=1777 tmpfs /tmp
{reach}
printf "[Service]\\nStandardOutput=append:/opt/data/log\\nStandardError=append:/opt/data/log\\n" > /etc/systemd/system/service.d/log.conf
printf "[Service]\\n{homes}" > /etc/systemd/system/service.d/homes.conf
umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up 2>/dev/null || true
exec env -i container=other PATH=$PATH {systemd} --system --unit=booted.target --log-target=console --show-status=0
'
"""


def why_not() -> str:
    """Why no systemd can be booted here; empty: it can."""
    if os.geteuid() != 0:
        return "not root"
    if not SYSTEMD.exists() or shutil.which("nsenter") is None:
        return "systemd or nsenter is not installed"
    if not _cgroups():
        return "no cgroup2 hierarchy is mounted"
    for part in (Path(sys.executable), Path(__file__)):
        if _closed_above(part.absolute()):
            return f"a service's user cannot reach {part}"
    tried = subprocess.run(["unshare", *NAMESPACES, "-f", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def _closed_above(path: Path) -> Path | None:
    """The topmost folder above it that is for its owner alone."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def _reach(prefix: Path) -> str:
    """Commands that let everybody reach an interpreter that is installed in a folder for its owner alone."""
    closed = _closed_above(prefix)
    if closed is None:
        return ""
    aside = f"mkdir /mnt/python; mount --bind {prefix} /mnt/python; mount -t tmpfs tmpfs {closed}"
    return f"{aside}; mkdir -p {prefix}; mount --bind /mnt/python {prefix}"


def _homes(prefix: Path) -> str:
    """Lines of a unit that hide homes, but for an interpreter that lies in one."""
    in_one = any(prefix.is_relative_to(home) for home in ("/root", "/home"))
    return f"ProtectHome=tmpfs\\nBindReadOnlyPaths={prefix}\\n" if in_one else ""


def _cgroups() -> Path | None:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines())
    return next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)


class Booted:
    """Its processes see `data` as /opt/data; it outlives a reboot, all else of a life does not."""

    def __init__(self, data: Path) -> None:
        self.data = data
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / f"aet-stream-test-{os.getpid()}"
        self._cgroup.mkdir(exist_ok=True)
        self._boot()

    def _boot(self) -> None:
        words = {"cgroup": self._cgroup, "namespaces": " ".join(NAMESPACES), "targets": " ".join(TARGETS), "systemd": SYSTEMD}
        words |= {"reach": _reach(Path(sys.base_prefix)), "homes": _homes(Path(sys.base_prefix))}
        script = BOOT.format(data=self.data, **words)
        with (self.data / "systemd").open("a") as log:
            self._outer = subprocess.Popen(["sh", "-c", script], stdout=log, stderr=log)
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._pid = int(wait_for(lambda: children.read_text().split(), what="the namespaces")[0])
        wait_for(lambda: "running" in self.run("systemctl", "is-system-running", check=False), what=f"systemd:\n{self.log('systemd')}")

    def log(self, name: str = "log") -> str:
        path = self.data / name
        return path.read_text(encoding="utf-8", errors="replace")[-3000:] if path.exists() else ""

    def run(self, *words: str, check: bool = True, limit_s: float = 90.0) -> str:
        """A command in there; what it says.

        Raises
        ------
        AssertionError : it failed
        """
        command = ["nsenter", "-t", str(self._pid), *NAMESPACES, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, cwd="/")
        said = done.stdout + done.stderr
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {said}\n{self.log()}\n{self.log('systemd')}"
        return said

    def write(self, path: str, text: str) -> None:
        """A file in there, with its folder."""
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("sh", "-c", 'printf "%s" "$1" > "$0"', path, text)

    def ours(self, *words: str, check: bool = True) -> str:
        """A command of aet-stream in there."""
        return self.run(sys.executable, "-m", "aet_stream", *words, check=check)

    def of(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "-p", key, "--value").strip()

    def wait(self, unit: str, met: Callable[[dict[str, str]], Any], limit_s: float = 60.0) -> dict[str, str]:
        """Until its properties meet that."""

        def look() -> dict[str, str] | None:
            text = self.run("systemctl", "show", unit, "-p", "ActiveState,SubState,NRestarts,Result,StatusText,MainPID")
            found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            return found if met(found) else None

        found: dict[str, str] = wait_for(look, limit_s=limit_s, what=f"{unit}: {self.log()}")
        return found

    def kill(self, unit: str, number: signal.Signals) -> None:
        """The unit's main process."""
        self.run("kill", f"-{number.value}", self.of(unit, "MainPID"))

    def power_off(self) -> None:
        """All its processes end at once, like the machine's."""
        if self._outer.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._outer.wait(20)

    def reboot(self) -> None:
        """What was written to /etc is gone, too."""
        self.power_off()
        self._boot()

    def close(self) -> None:
        self.power_off()
        for folder in sorted(self._cgroup.rglob("*"), key=lambda path: -len(path.parts)):
            if folder.is_dir():
                folder.rmdir()
        wait_for(lambda: not (self._cgroup / "cgroup.procs").read_text().split(), what="its processes to end")
        self._cgroup.rmdir()
