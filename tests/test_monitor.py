"""Status over HTTP: true, read-only, for this machine only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.harness import Daemon, put, running, wait_for


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def address(daemon: Daemon) -> str:
    return str(wait_for(lambda: daemon.status()["roles"].get("monitor", {}).get("status", {}).get("url"), what="the monitor"))


def test_it_tells_what_the_hub_tells(tmp_path: Path) -> None:
    """Counts, readiness and metrics agree with what is stored; nothing but GET, no foreign host."""
    with running(tmp_path, monitor__enabled=True, monitor__port=0) as daemon:
        for index in range(3):
            put(daemon.root / "np", index, float(index))
        daemon.wait_for_totals(stored=3)
        url = address(daemon)
        wait_for(lambda: json.loads(get(f"{url}/status.json")[1]).get("totals", {}).get("stored") == 3, what="three in the status")
        assert get(f"{url}/livez")[0] == 200
        wait_for(lambda: get(f"{url}/readyz") == (200, "ready\n"), what="readiness")
        metrics = get(f"{url}/metrics")[1]
        assert 'aet_projections_total{outcome="stored"} 3.0' in metrics
        assert "np" not in metrics.replace("input", "")
        assert get(f"{url}/status.json", Host="evil.example")[0] == 400
        post = urllib.request.Request(f"{url}/status.json", data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(post, timeout=5)
        assert refused.value.code == 405
        refused.value.close()


def test_it_says_when_the_hub_is_silent_and_recovers(tmp_path: Path) -> None:
    """The hub is stopped: not ready, with the reason; the hub goes on: ready again."""
    import os
    import signal

    with running(tmp_path, monitor__enabled=True, monitor__port=0, supervise__stall_s=60) as daemon:
        url = address(daemon)
        wait_for(lambda: get(f"{url}/readyz")[0] == 200, what="readiness")
        hub = daemon.role_pids()["hub"]
        os.kill(hub, signal.SIGSTOP)
        try:
            wait_for(lambda: get(f"{url}/readyz") == (503, "the hub is silent\n"), what="word of the silent hub")
            assert get(f"{url}/livez")[0] == 200
            code, text = get(f"{url}/status.json")
            assert code == 503
            assert "has not been heard" in json.loads(text)["daemon"]
        finally:
            os.kill(hub, signal.SIGCONT)
        wait_for(lambda: get(f"{url}/readyz")[0] == 200, what="readiness again")
