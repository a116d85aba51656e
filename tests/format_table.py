"""What is read from which format: `python -m tests.format_table` writes docs/formats.md, a test compares it.

The first table is made from files written by our own small writers, the second from third-party samples where they are present.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aet_stream.config import Angle
from aet_stream.errors import AetError
from aet_stream.readers.angle import resolve
from aet_stream.readers.child import ReaderChild
from aet_stream.readers.looking import Look
from aet_stream.simulate import writers
from tests import containers, exchanged
from tests.harness import known_image

PAGE = Path(__file__).parent.parent / "docs" / "formats.md"
TILTS = [-60.0, -3.25, 70.5]
HEAD = """# Formats

What stands in each file, as `aet-stream check` says it. Made by `python -m tests.format_table`; a test compares this page with what the
readers find. A dash: the file does not say it. Tilts in degrees, whatever the file counts in.

Every file is opened for reading only, never locked, never kept open; HDF5 files are copied before they are parsed, because a plain HDF5
reader would make the instrument's next write fail. A name must tell the truth: the content decides what a file is.

## From files that the tests write themselves

"""
COLUMNS = "| format | image | tilt | pixel size | time | frames, container |\n| --- | --- | --- | --- | --- | --- |\n"
SECOND = """
## From third-party samples

Pixels of the DM4, SER, EMD and FEI2 samples were compared with those that RosettaSciIO reads: same values, same orientation, except that
it transposes the NCEM image, which ncempy shows as we do.

"""
NOTES = """
## What to know

- **Orientation**: row 0 is the first row, as the program that wrote the file shows it. SER rows are stored from the bottom up and are
  turned; MRC rows are taken as stored, though some programs count them from the bottom: say `orientation.flip_y = true` if yours does.
- **What stands beside the pixels costs no image**: links anywhere in an HDF5 file (never followed), tags of unknown kinds, damaged XML and
  JSON, headers counted in another way, pages that are marked as smaller copies. What of it cannot be understood is not known: `check` says
  "not believed", a projection that lacks its tilt for it is held with that reason, and one that is stored has it as its flag. Data that lie
  behind a link or in another file are refused.
- **No projection, as the file itself says**: an axis in 1/nm, mrad or eV, a `Meta Data.Format` of spectra or diffraction, a camera's image in
  diffraction mode (Velox, TIA, DigitalMicrograph, JEOL, FEI's MRC and TIFF; scanned images are always taken so), a TIA step that can be no
  metres. Refused once for the file; one image of several is recorded, not stored. A pixel size above a millimetre is none.
- **Velox**: which images were acquired and which computed (element maps, DPC, sums of frames beside the frames) is read from the operation
  that wrote each, the label and group of its display, the kind of its detector, or floats beside counts. Computed ones are recorded, not
  stored; segments of one detector are told apart by `series.detector = "DF4 A"`, where the file names them.
- **SerialEM's records and the 128-byte records of Xplore3D** are read by their published descriptions only; no sample was at hand. Before 2014
  an extended header had no type: SerialEM's are known by their two numbers, Xplore3D's may be 1,024, 8,192 or as many as it has numbers for.
- **Stacks of DigitalMicrograph**: the tilt of each image is that of its own tags (Stack Builder), of `Meta Data.Dimension info` called a tilt
  angle, or of an axis in degrees; where they differ by more than half a degree, it is not known.
- **TIA** (`.ser`) knows its tilt only from the `.emi` beside it. A stage that reads 0 on all five axes was not read, and says nothing.
- **STEMTomo on a compustage**: the scripting interface counts radians, the program writes "degrees". Such tilts are held until
  `angle.metadata_unit` says which.
- **TVIPS**: the tilt is taken from `TemStagePosition`, not from `SpecimenTiltAngle`, whose scale nobody knows.
- **Berkeley EMD**: the only axis in degrees or radians counts the tilts, wherever it is; one called `angles` without a unit is held until
  `angle.metadata_unit` says which. Axes of EMD 1.0, which are counted from `dim0`, are understood.
- **`.h5`** is read if it is Data Exchange, Nion Swift or an EMD; of another layout nothing is guessed. White and dark fields of Data Exchange
  are not applied. A series that aet-stream wrote is refused: its background is gone.
- **Nion Swift**: the stage's tilt is a number without a unit (`StageOutA`): held until `angle.metadata_unit` says which. A sequence has a tilt
  for each image only where its first axis counts degrees or radians.
- **Euler angles** (phi, theta, psi) are tilts only where phi and psi are zero; else the images are held, and a `.rawtlt` beside the file decides.
- **Integers of 64 bits**, as NumPy and MATLAB write them, are stored as 32 bits; a file with larger numbers is refused.
- **Sidecars**: `.mdoc`, `.idoc` (by name, by `ImageFile`, or one for a folder that names its images), `.rawtlt` and `.tlt` (as many lines as
  images), `.csv` (by name, or one for a folder with a column `file`, and of stacks one named `image`, counted from 0, or all of it from 1; a
  column named tilt, angle or alpha, `(rad)` where it is radians; decimal commas with `;`), `.emi`, `angles.mat` beside `projections.mat`.
  An `angles.txt` is never believed, because it may be of any file: where it would fit, the reason names it, and what it has to be called.
  A last line without its end may still be written: it is believed after `watch.settle_s`. A sidecar that cannot be read is waited for; one that
  is a link, or larger than 16 MiB, holds its images; what of one is damaged is not known.
- **Which section of an `.mdoc` is of which image**: section i of image i, if there is one for each. Otherwise (images were taken out, or turned
  round) the one whose `MinMaxMean` the pixels have, in stacks up to 512 MiB; what that does not settle is held.
- **Frames**: a file that an `.mdoc` names with `FrameSet` or `SubFramePath`, and whose images are as many as `NumSubFrames`, is one visit of so
  many frames.
- **Other formats**: `readers.enabled = ["rsciio"]` opens the door to RosettaSciIO, if it is installed (GPL-3.0, never needed otherwise).
  A package of your own adds a reader by an entry point in the group `aet_stream.readers`: an object with `SUFFIXES` and `open_source`.

## How it was tried

Counts and times of 24 November 2026, on two cores.

| what | found | by |
| --- | --- | --- |
| 2,000 files at full speed into 100 new nested folders; into 2,000 | 0 missed, 0 doubled; all offered after 4 s; after 6 s | `pytest -m slow tests/behaviour/test_bursts.py` |
| 20,000 files in 200 new folders, written in 4 s | 0 missed, 0 doubled; all offered after 28 s | the same |
| inotify overflow forced: 10,000 files while the watch stands still | noticed; 0 missed, 0 doubled; all offered after 12 s | the same |
| 2,000 files through the whole daemon | 2,000 rows, 0 duplicates, 0 held, 0 quarantined; after 49 s | the same |
| 21 ways to arrive, fast and slow, with events and by polling | the meant pixels of each once, at its tilt | `pytest tests/behaviour/test_arrival.py` |
| a writer that appends 60 tilts of 3 frames (STEMTomo) while we read | it never failed; each tilt once and complete | `pytest tests/behaviour/test_growing.py` |
| 10,000 files, nothing happens | 1.7 % of a core with events in the first minute after they came, 1.1 % from then on; polling every 2 s: 4.1 % | `python -m tests.bench_arrival` |
| a new file beside them, from its close to its offer | median 3 ms, worst of 40: 104 ms; polling every 2 s: median 1.5 s, worst 2.8 s (the machine to itself) | the same |
| 20,520 damaged files of all kinds above, through the reading process (seeds 31, 41, 42, 45, 46 whole; 43, 44 to 1,500 each); 7,500 before | 0 wrong pixels from what was cut or zero-filled, 0 deaths of the daemon's side; 3 crashes, 3 times out of memory, 8 times out of time, each one child | `python -m tests.fuzz 5000 41` |
| 6,004 more (29 November 2026, with the formats added since) | 0 wrong pixels, 0 deaths; 4 times out of time on a busy machine, each one child | `python -m tests.fuzz 6000 61` |
| 6,000 more (30 November 2026) | 0 wrong pixels, 0 deaths; once out of memory, 3 times out of time on a busy machine, each one child | `python -m tests.fuzz 6000 71` |
| 106 files, 90 own and 16 third-party, against RosettaSciIO 0.15 (30 November 2026) | 97 read by both: 87 with the same pixels in the same places, 9 that it transposes or takes in reverse (Berkeley EMD), 1 of which it shows the smaller copy, too; 8 that only we read (Velox, STEMTomo, Xplore3D, a DM4 with a tag of an unknown kind), 1 line spectrum that only it reads; each difference in pixel size and tilt with its reason | `python -m tests.test_differential` |
| 500 mixtures of files (several images, detectors, sidecars, frames, surveys, what is no image), 4,155 images, handed over one by one and eight at a time (30 November 2026) | `check` and a run say the same of each, for the same reason, and it is what the mixture's maker knows to be right | `pytest -m slow tests/test_mixtures.py` |
| zeros at the end of 373 images of 18 real and published files | 3 flagged, those that are blank | `readers.looking.zero_tail` |
"""  # noqa: E501


def fixtures(folder: Path) -> list[tuple[str, Path]]:
    """(what it is, path) of one file of every kind that we can write."""
    one, three = known_image(1, 48)[:, :40], np.stack([known_image(index, 48)[:, :40] for index in range(3)])
    square = np.stack([known_image(index, 48) for index in range(6)]).reshape(3, 2, 48, 48)
    made: list[tuple[str, Path]] = []

    def add(what: str, name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        made.append((what, path))
        return path

    add("Gatan DM3", "a.dm3", writers.dm3(one, -34.5, 0.05))
    add("Gatan DM4", "a.dm4", writers.dm4(one, -34.5, 0.05))
    add("Gatan DM5", "a.dm5", exchanged.dm5(one, -34.5, 0.05))
    add("Gatan DM5, stack with a tilt axis", "stack.dm5", exchanged.dm5(three, -34.5, 0.05, step_deg=2.0))
    add("FEI TIA `.ser` with `.emi`", "tia_1.ser", writers.ser(one, 0.0, 0.05))
    (folder / "tia.emi").write_bytes(writers.emi(-34.5))
    add("TIA, series stopped early", "stop_1.ser", writers.ser(three, 0.0, 0.05, total=10))
    add("Velox", "velox.emd", writers.velox(one, -34.5, 0.05))
    add("Velox, two detectors", "two.emd", writers.velox(one, -34.5, 0.05, detectors=("HAADF", "BF")))
    add("Velox, frames of one tilt", "movie.emd", writers.velox(three, -34.5, 0.05))
    add("Velox, one tilt per frame", "series.emd", writers.velox(three, -34.5, 0.05, step_deg=2.0))
    add("NCEM single image", "ncem.emd", writers.emd(one, -34.5, 0.05))
    for name, rotations in (("STEMTomo", ()), ("STEMTomo, scan rotations", (0.0, 90.0))):
        path = folder / f"tomo{len(rotations)}.emd"
        growing = containers.StemTomo(path, repeats=2, size_px=48, rotations_deg=rotations)
        for frames, tilt in zip(square, TILTS, strict=True):
            growing.append(frames, tilt)
        made.append((name, path))
    add("MRC with `.mdoc`", "serialem.mrc", writers.mrc(three, 0.0, 0.05))
    (folder / "serialem.mrc.mdoc").write_bytes(writers.mdoc("serialem.mrc", TILTS, 0.05))
    add("MRC with `.rawtlt`", "raw.st", writers.mrc(three, 0.0, 0.05))
    (folder / "raw.rawtlt").write_text("".join(f"{tilt}\n" for tilt in TILTS))
    kinds: list[tuple[str, Callable[..., bytes]]] = [
        ("FEI2", containers.mrc_fei), ("Xplore3D", containers.mrc_legacy), ("SERI", containers.mrc_seri),
    ]  # fmt: skip
    for kind, writer in kinds:
        add(f"MRC, {kind} header", f"{kind}.mrc", writer(three, TILTS, 0.05))
    add("MRC, FEI1 header", "FEI1.mrc", containers.mrc_fei(three, TILTS, 0.05, kind="FEI1"))
    add("MRC, SerialEM before 2014", "serialem_old.mrc", containers.mrc_seri(three, TILTS, 0.05, kind=b""))
    add("TIFF, ImageJ", "imagej_-34.50deg.tif", writers.tiff(one, 0.0, 0.05))
    add("TIFF of DigitalMicrograph", "dm.tif", containers.tiff_dm(one, -34.5, 0.05))
    add("TIFF of TVIPS", "tvips.tif", containers.tiff_tvips(one, -34.5, 0.05))
    add("TIFF of JEOL SightX", "jeol.tif", containers.tiff_jeol(one, -34.5, 0.05))
    add("TIFF of FEI", "fei.tif", containers.tiff_fei(one, -34.5, 0.05))
    add("OME-TIFF", "ome_-34.50deg.tif", containers.tiff_ome(one, 0.0, 0.05))
    add("TIFF with `.csv`", "table.tif", writers.tiff(one, 0.0, 0.05))
    (folder / "all.csv").write_text("file;tilt (deg)\ntable.tif;-34,5\n")
    add("NumPy", "numpy_-34.50deg.npy", writers.npy(one, 0.0, 0.05))
    add("MATLAB 5", "matlab.mat", writers.mat(one, -34.5, 0.05))
    add("MATLAB, `projections.mat` with `angles.mat`", "projections.mat", exchanged.genfire_projections(three))
    (folder / "angles.mat").write_bytes(exchanged.genfire_angles(TILTS))
    add("tomviz", "tomviz.emd", exchanged.tomviz(three, TILTS, 0.05))
    add("tomviz, radians, tilts last", "last.emd", exchanged.tomviz(three, TILTS, 0.05, axis=2, unit="[rad]"))
    add("Data Exchange", "exchange.h5", exchanged.data_exchange(three, TILTS))
    add("Nion Swift `.ndata`", "swift_-34.50deg.ndata", exchanged.ndata(one, 0.05))
    add("Nion Swift `.h5`", "swift_-34.50deg.h5", exchanged.swift_h5(one, 0.05))
    add("MRC with `.tlt`", "imod.ali", writers.mrc(three, 0.0, 0.05))
    (folder / "imod.tlt").write_text("".join(f"{tilt:8.2f}\n" for tilt in TILTS))
    add("MRC, frames of an exposure, with `.mdoc`", "frames.mrc", writers.mrc(three, 0.0, 0.05))
    (folder / "frames.mrc.mdoc").write_bytes(containers.frame_mdoc("frames.mrc", -34.5, 3, 0.05))
    return made


def row(what: str, path: Path, reader: ReaderChild) -> str:
    """One line of the table."""
    loose = tuple(str(other) for other in path.parent.glob("all.csv"))
    try:
        look = reader.look(path, loose)
        reader.read(path, 0)
    except AetError as error:
        return f"| {what} | refused: {error} | | | | |\n"
    return f"| {what} | {_image(look)} | {_tilt(look, path)} | {_size(look)} | {_time(look)} | {_frames(look)} |\n"


def _image(look: Look) -> str:
    probe = look.probe
    count = f"{probe.images} x " if probe.images > 1 else ""
    return f"{count}{probe.shape[0]} x {probe.shape[1]} {np.dtype(probe.dtype).name}"


def _tilt(look: Look, path: Path) -> str:
    said = []
    for unit in (look.units[0], look.units[-1])[: len(look.units)]:
        stated, _ = resolve(unit.acquisition, unit.tilts, path.name, look.probe.images, Angle(), remark=unit.remark)
        said.append(f"{stated[0].tilt_deg:.3f}".rstrip("0").rstrip(".") + f" ({stated[0].source})" if stated else "-")
    return " .. ".join(dict.fromkeys(said))


def _size(look: Look) -> str:
    size = look.units[0].acquisition.pixel_size_nm
    return "-" if size is None else f"{size:.5g} nm"


def _time(look: Look) -> str:
    said = look.units[0].acquisition
    return said.acquired_utc[:19].replace("T", " ") or (
        f"{said.acquired_local[:19].replace('T', ' ')} local" if said.acquired_local else "-"
    )


def _frames(look: Look) -> str:
    probe = look.probe
    words = [f"{probe.frames} frames" if probe.frames > 1 else "", "may grow" if probe.container else "", str(look.waiting or "")]
    return ", ".join(filter(None, words)) or "-"


def first_table(folder: Path, reader: ReaderChild) -> str:
    return COLUMNS + "".join(row(what, path, reader) for what, path in fixtures(folder))


def second_table(data: Path, reader: ReaderChild) -> str:
    files = sorted(p for p in (data / "formats").rglob("*") if p.is_file() and p.suffix not in (".emi", ".mdoc", ".etspy"))
    files += [data / "real-series" / "HAADF.dm3", *sorted((data / "simulated-np").glob("np*.mat")), data / "data-exchange" / "tooth.h5"]
    return COLUMNS + "".join(row(f"{path.parent.name}/{path.name}", path, reader) for path in files)


def main() -> None:
    reader = ReaderChild(timeout_s=30, memory_mib=4096, max_file_mib=64)
    with tempfile.TemporaryDirectory() as folder:
        first = first_table(Path(folder), reader)
    data = os.environ.get("AET_STREAM_TEST_DATA")
    second = second_table(Path(data), reader) if data else PAGE.read_text().partition(SECOND)[2].partition(NOTES[:20])[0]  # as it was
    PAGE.write_text(HEAD + first + SECOND + second + NOTES)
    reader.close()


if __name__ == "__main__":
    main()
