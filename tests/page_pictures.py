"""Pictures of the live page for looking at: `python -m tests.page_pictures FOLDER`. Three sizes, light and dark, and the report.

A series with much that can happen: a gap, a repeat, a drifted and a clipped frame, a jump of the beam, one held, one quarantined; an old
series with its volume. `docs/page-light.png` is the laptop's, `docs/page-dark.png` the desk's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from aet_stream.simulate.series import SimulatedSeries, simulate_series
from aet_stream.simulate.writers import tiff
from tests.browser import chromium
from tests.harness import put, running, wait_for
from tests.test_monitor import address

SIZES = {"laptop": (1440, 900), "desk": (1920, 1080), "wall": (3840, 2160)}
TILTS = np.array([tilt for tilt in range(-66, 52, 3) if tilt not in (21, 24)] + [0.0])


def spoilt(series: SimulatedSeries) -> np.ndarray:
    """The raw frames, some of them as they should not be."""
    raw = series.raw.copy()
    at = {tilt: index for index, tilt in enumerate(TILTS)}
    raw[at[-30]] = np.roll(raw[at[-30]], 26, axis=1)
    bright = raw[at[12]] > np.percentile(raw[at[12]], 99)
    raw[at[12]][bright] = np.percentile(raw[at[12]], 99)
    half = np.s_[: raw.shape[1] // 2]
    raw[at[36], half] = np.roll(raw[at[36], half], 14, axis=1)
    return raw


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    series = simulate_series(seed=7, tilts_deg=TILTS, size_px=256)
    settings = {"denoise__model": "default", "preview__enabled": True, "reconstruct__on_close": True, "reconstruct__quality": False,
                "reconstruct__iterations": 20, "series__expected": 0, "frames__window_s": 1}  # fmt: skip
    with tempfile.TemporaryDirectory() as name, running(Path(name), monitor__enabled=True, monitor__port=0, **settings) as daemon:
        old = daemon.root / "tuesday_pt_01"
        old.mkdir()
        for index in range(0, 39, 3):
            (old / f"image_{index:03d}_{TILTS[index]:+.1f}deg.tif").write_bytes(tiff(series.raw[index] + 1, 0.0, series.pixel_size_nm))
        daemon.wait_for_totals(limit_s=300, stored=13)
        daemon.ask("close", old.name)
        wait_for((daemon.out / old.name / "reconstruction.h5").exists, limit_s=300, what="the volume of the old series")
        new = daemon.root / "wednesday_pt_07"
        new.mkdir()
        put(new, 900, None)
        (new / "probe_901_+24.00deg.tif").write_bytes(b"II*\0 cut off")
        for index, (image, tilt) in enumerate(zip(spoilt(series), TILTS, strict=True)):
            (new / f"probe_{index:03d}_{tilt:+.2f}deg.tif").write_bytes(tiff(image, 0.0, series.pixel_size_nm))
            daemon.wait_for_totals(limit_s=300, stored=14 + index)
        daemon.wait_for_totals(limit_s=120, held=1, quarantined=1)
        wait_for((daemon.out / new.name / "preview.h5").exists, limit_s=300, what="a preview")
        with chromium(Path(name) / "profile") as browser:
            page = browser.page(address(daemon))
            for size, (width, height) in SIZES.items():
                for theme in ("light", "dark"):
                    page.size(width, height)
                    page.dark(theme == "dark")
                    page.open(address(daemon))
                    page.wait(f"window.aet?.painted > 0 && document.documentElement.dataset.theme === '{theme}'", limit_s=120)
                    page.wait(
                        "document.querySelectorAll('#advice button').length > 0 && document.querySelectorAll('#volume canvas').length === 3"
                    )
                    page.wait("[...document.querySelectorAll('.tile img')].filter((i) => i.complete && i.naturalWidth).length > 8")
                    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                    page.screenshot(folder / f"page-{size}-{theme}.png")
                    if size == "laptop":
                        tall = page.run("document.documentElement.scrollHeight")
                        page.size(width, tall)
                        page.screenshot(folder / f"whole-{size}-{theme}.png")
            page.size(1100, 1400)
            page.open(f"{address(daemon)}/api/v1/series/{page.run('aet.series')}/report.html")
            page.wait("document.title.includes('tilt series')")
            page.screenshot(folder / "report.png")
            assert not page.errors
    print(*sorted(path.name for path in folder.glob("*.png")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
