"""Viewers without a browser: each fetches what a page fetches. `python -m tests.viewers http://127.0.0.1:8571 8` until it is stopped."""

from __future__ import annotations

import json
import sys
import threading
from http.client import HTTPConnection

from websockets.sync.client import connect


def view(url: str) -> None:
    """Every new projection's three images and its thumbnail, as soon as it is announced."""
    where = url.removeprefix("http://")
    with connect(f"ws://{where}/api/v1/events", proxy=None, max_size=None) as events:
        connection = HTTPConnection(where, timeout=60)
        for text in events:
            message = json.loads(text)
            if message["type"] == "frame":
                row = message["row"]
                one = f"/api/v1/series/{message['series']}/frames/{row['number']}"
                for what in ("raw", "clean", "background", "thumb.png"):
                    connection.request("GET", f"{one}/{what}?v={row['clean_crc32']}")
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 200:
                        raise SystemExit(f"{one}/{what}: {answer.status}")


if __name__ == "__main__":
    threads = [threading.Thread(target=view, args=(sys.argv[1],)) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
