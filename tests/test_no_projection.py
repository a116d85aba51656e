"""What a file itself says to be no projection (a spectrum, a diffraction pattern) is refused once; what only looks so is read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aet_stream.errors import SourceError
from aet_stream.readers import no_space, pixel_size_nm
from aet_stream.simulate import writers
from tests import containers
from tests.dm_files import DmFile, stage
from tests.looks import IMAGE, is_read, looked
from tests.tiff_files import page, tiff
from tests.watching import Bench

NM = (0.05, 0.0, "nm")


@pytest.mark.parametrize(
    ("unit", "word"),
    [("1/nm", "diffraction"), ("1/m", "diffraction"), ("1 / Å", "diffraction"), ("/nm", "diffraction"), ("nm^-1", "diffraction"),
     ("[n_m^-1]", "diffraction"), ("A-1", "diffraction"), ("Å⁻¹", "diffraction"), ("nm^{-1}", "diffraction"), ("mrad", "diffraction"),
     ("rad", "diffraction"), ("µrad", "diffraction"), ("eV", "spectrum"), ("keV", "spectrum"), ("[eV]", "spectrum"),
     ("nm", ""), ("m", ""), ("[n_m]", ""), ("µm", ""), ("Å", ""), ("", ""), ("px", ""), ("pixels", ""), ("s", ""), ("deg", "")],
)  # fmt: skip
def test_units_say_what_an_axis_is(unit: str, word: str) -> None:
    """Reciprocal lengths and angles are of diffraction patterns, energies of spectra; of any other nothing is said."""
    assert word in no_space(unit, "nm")
    assert bool(no_space("nm", unit)) == bool(word)


def test_a_tilt_in_radians_makes_no_diffraction_pattern() -> None:
    """Further axes are asked for energies only."""
    assert no_space("nm", "nm", others=["rad", "s", "1/nm"]) == ""
    assert "spectrum" in no_space("nm", "nm", others=["rad", "eV"])


@pytest.mark.parametrize(
    ("size", "unit", "nm"),
    [(1.0, "m", None), (4.2e7, "m", None), (1e-3, "m", None), (1e-5, "m", 1e4), (1e-14, "m", None), (1.0, "pm", 1e-3), (2.0, "mm", None),
     (float("inf"), "nm", None), (float("nan"), "nm", None)],
)  # fmt: skip
def test_metres_are_no_pixel_size(size: float, unit: str, nm: float | None) -> None:
    """Nor is anything else that no microscope has."""
    assert pixel_size_nm((size, unit), (size, unit)) == (None if nm is None else pytest.approx(nm))


# -- DigitalMicrograph ---------------------------------------------------------------------------------------------------------------------


def dm(folder: Path, tags: dict[str, Any], axes: Sequence[tuple[float, float, str]] = (NM, NM), pixels: np.ndarray = IMAGE) -> Path:
    writer = DmFile(4)
    path = folder / "x.dm4"
    path.write_bytes(writer.file({"ImageList": [writer.image(pixels, {**stage(-34.5), **tags}, axes)]}))
    return path


def mode(imaging: str, operation: str, illumination: str) -> dict[str, Any]:
    words = {"Imaging Mode": imaging, "Operation Mode": operation, "Illumination Mode": illumination}
    return {"Microscope Info": {**stage(-34.5)["Microscope Info"], **words}}


RAW = (1.0, 0.0, "")
STACK = np.stack([IMAGE] * 8)
REFUSED: dict[str, tuple[dict[str, Any], Sequence[tuple[float, float, str]], np.ndarray, str]] = {
    "reciprocal": ({}, ((0.02, 0.0, "1/nm"), (0.02, 0.0, "1/nm")), IMAGE, "1/nm"),
    "angles": ({}, ((0.2, 0.0, "mrad"), (0.2, 0.0, "mrad")), IMAGE, "mrad"),
    "energy along x": ({}, ((0.5, 0.0, "eV"), NM), IMAGE, "eV"),
    "energy along y": ({}, (NM, (0.5, 0.0, "eV")), IMAGE, "eV"),
    "spectrum image": ({}, (NM, NM, (0.5, 0.0, "eV")), STACK, "eV"),
    "spectrum image by its format": ({"Meta Data": {"Format": "Spectrum image", "Signal": "EELS"}}, (NM, NM, RAW), STACK, "Spectrum image"),
    "spectrum by its format": ({"Meta Data": {"Format": "Spectrum"}}, (NM, NM), IMAGE, "'Spectrum'"),
    "diffraction by its format": ({"Meta Data": {"Format": "Diffraction image"}}, (NM, NM), IMAGE, "Diffraction image"),
    "a camera in diffraction, by its operation": (mode("", "DIFFRACTION", "TEM"), (RAW, RAW), IMAGE, "'DIFFRACTION'"),
    "a camera in diffraction": (mode("DIFFRACTION", "IMAGING", "TEM"), (RAW, RAW), IMAGE, "'DIFFRACTION'"),
}
READ: dict[str, tuple[dict[str, Any], Sequence[tuple[float, float, str]]]] = {
    "an image by its format": ({"Meta Data": {"Format": "Image", "Signal": "HAADF"}}, (NM, NM)),
    "scanned, in diffraction as always": (mode("DIFFRACTION", "SCANNING", "STEM NANOPROBE"), (RAW, RAW)),
    "scanned by a DigiScan": ({**mode("DIFFRACTION", "IMAGING", "TEM"), "DigiScan": {"Sample Time": 8.0}}, (RAW, RAW)),
    "with lengths, whatever the mode says": (mode("DIFFRACTION", "IMAGING", "TEM"), (NM, NM)),
    "without units": ({}, (RAW, RAW)),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_dm_file_that_says_so_is_refused(tmp_path: Path, kind: str) -> None:
    """By the units of its axes, by its format, by the mode of the microscope."""
    tags, axes, pixels, reason = REFUSED[kind]
    with pytest.raises(SourceError, match=f"no projection, as the file itself says.*{reason}"):
        looked(dm(tmp_path, tags, axes, pixels))


@pytest.mark.parametrize("kind", sorted(READ))
def test_a_dm_file_that_only_looks_so_is_read(tmp_path: Path, kind: str) -> None:
    """Scanned images are always taken with the lenses in diffraction."""
    assert is_read(dm(tmp_path, *READ[kind])) == ""


def test_64_planes_of_a_spectrum_image_are_one_record(tmp_path: Path) -> None:
    """Not 64 projections that wait for a tilt: the watch refuses the file once, and offers none of them."""
    with Bench(tmp_path, "watch.incomplete_s=0.5") as bench:
        (bench.root / "np1").mkdir()
        path = dm(bench.root / "np1", {"Meta Data": {"Format": "Spectrum image"}}, (NM, NM, (0.5, 0.0, "eV")), np.stack([IMAGE] * 64))
        bench.until(lambda: bench.refused)
        bench.rest()
        assert [(refused.visit.path, refused.why) for refused in bench.refused] == [(f"np1/{path.name}", "bad")]
        assert "Spectrum image" in str(bench.refused[0].reason)
        assert not bench.offered


# -- the others ----------------------------------------------------------------------------------------------------------------------------


def reciprocal_emd(path: Path, unit: str) -> None:
    path.write_bytes(writers.emd(IMAGE, -34.5, 0.05))
    with h5py.File(path, "r+") as file:
        for axis in (1, 2):
            file[f"data/single/dim{axis}"].attrs["units"] = np.bytes_(unit)


def velox(path: Path, *units: str) -> None:
    """One signal for each unit of pixels."""
    path.write_bytes(writers.velox(IMAGE, -34.5, 0.05, detectors=tuple(f"D{index}" for index in range(len(units)))))
    with h5py.File(path, "r+") as file:
        for group, unit in zip(file["Data/Image"].values(), units, strict=True):
            metadata = group["Metadata"]
            text = metadata[:, 0].tobytes().rstrip(b"\0").replace(b'"m"', f'"{unit}"'.encode())
            metadata[:, 0] = np.frombuffer(text.ljust(len(metadata), b"\0"), np.uint8)


def ser(path: Path, step_nm: float, mode: str = "") -> None:
    """A `.ser` with its `.emi`."""
    path.write_bytes(writers.ser(IMAGE, 0.0, step_nm))
    row = f"<Data><Label>Mode</Label><Value> {mode}</Value><Unit></Unit></Data></Root>".encode()
    path.with_name("x.emi").write_bytes(writers.emi(-34.5).replace(b"</Root>", row))


def jeol(mode: str) -> bytes:
    tilt = "<GonioStage><StagePosition><TX>-34.5</TX></StagePosition></GonioStage>"
    report = f"<TemReporter><EOS><FunctionMode>{mode}</FunctionMode></EOS>{tilt}</TemReporter>"
    return tiff(page(IMAGE, (270, "s", report.encode() + b"\0")))


def fei(mode: str) -> bytes:
    rows = (("Mode", mode, ""), ("Stage A", "-34.5", "deg"))
    cells = "".join(f"<Data><Label>{label}</Label><Value>{value}</Value><Unit>{unit}</Unit></Data>" for label, value, unit in rows)
    return tiff(page(IMAGE, (34683, "s", f"<Root>{cells}</Root>".encode() + b"\0")))


def imagej(unit: str) -> bytes:
    rational = struct.pack("<2I", 20, 1)
    text = f"ImageJ=1.54\nunit={unit}\n".encode() + b"\0"
    return tiff(page(IMAGE, (270, "s", text), (282, 5, rational), (283, 5, rational)))


def fei_mrc(path: Path, instrument: int, projection: int) -> None:
    from mrcfile.dtypes import get_ext_header_dtype

    content = bytearray(containers.mrc_fei(IMAGE[None], [-34.5], 0.05))
    record = np.frombuffer(content, get_ext_header_dtype(b"FEI2", "<"), 1, 1024)
    record["Instrument mode"], record["Projection mode"] = instrument, projection
    path.write_bytes(content)


Make = Callable[[Path], object]
OTHERS: dict[str, tuple[str, Make, str]] = {
    "NCEM, reciprocal": ("x.emd", lambda path: reciprocal_emd(path, "[n_m^-1]"), "n_m\\^-1"),
    "NCEM, 1/nm": ("x.emd", lambda path: reciprocal_emd(path, "1/nm"), "1/nm"),
    "NCEM, energies": ("x.emd", lambda path: reciprocal_emd(path, "eV"), "eV"),
    "Velox": ("x.emd", lambda path: velox(path, "1/m"), "1/m"),
    "Velox, every signal": ("x.emd", lambda path: velox(path, "1/m", "rad"), "1/m"),
    "TIA, 1/m by its size": ("x_1.ser", lambda path: ser(path, 4.2e16), "1/m"),
    "TIA, by its mode": ("x_1.ser", lambda path: ser(path, 0.05, "TEM uP SA Zoom Diffraction"), "TEM uP SA Zoom Diffraction"),
    "JEOL": ("x.tif", lambda path: path.write_bytes(jeol("DIFF")), "'DIFF'"),
    "JEOL, in words": ("x.tif", lambda path: path.write_bytes(jeol("Diffraction")), "'Diffraction'"),
    "FEI in TIFF": ("x.tif", lambda path: path.write_bytes(fei("TEM nP SA Zoom Diffraction")), "TEM nP SA Zoom Diffraction"),
    "ImageJ": ("x.tif", lambda path: path.write_bytes(imagej("1/nm")), "1/nm"),
    "FEI in MRC": ("x.mrc", lambda path: fei_mrc(path, 1, 1), "projection mode"),
}
NOT: dict[str, tuple[str, Make, float | None]] = {
    "TIA, scanned": ("x_1.ser", lambda path: ser(path, 0.05, "STEM nP SA Zoom Diffraction"), None),
    "TIA, a camera's image": ("x_1.ser", lambda path: ser(path, 0.05, "TEM uP SA Zoom Image"), None),
    "JEOL, an image": ("x.tif", lambda path: path.write_bytes(jeol("MAG")), -34.5),
    "FEI in TIFF, scanned": ("x.tif", lambda path: path.write_bytes(fei("STEM nP SA Zoom Diffraction")), -34.5),
    "ImageJ, inches": ("x.tif", lambda path: path.write_bytes(imagej("inch")), None),
    "FEI in MRC, scanned": ("x.mrc", lambda path: fei_mrc(path, 2, 1), -34.5),
    "FEI in MRC, a camera's image": ("x.mrc", lambda path: fei_mrc(path, 1, 2), -34.5),
    "FEI in MRC, not said": ("x.mrc", lambda path: fei_mrc(path, 0, 0), -34.5),
}


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_whatever_format_says_so_is_refused(tmp_path: Path, kind: str) -> None:
    """With the words that it says it in."""
    name, make, reason = OTHERS[kind]
    make(tmp_path / name)
    with pytest.raises(SourceError, match=f"no projection, as the file itself says: a (diffraction pattern|spectrum).*{reason}"):
        looked(tmp_path / name)


@pytest.mark.parametrize("kind", sorted(NOT))
def test_whatever_only_looks_so_is_read(tmp_path: Path, kind: str) -> None:
    """STEM by any maker's name for it, and modes nobody has named."""
    name, make, tilt_deg = NOT[kind]
    make(tmp_path / name)
    is_read(tmp_path / name, tilt_deg)


def test_a_diffraction_pattern_beside_an_image_is_recorded_and_the_image_read(tmp_path: Path) -> None:
    """Of one Velox file: only what is none is called none."""
    velox(tmp_path / "x.emd", "m", "1/m")
    said = [unit.acquisition for unit in looked(tmp_path / "x.emd").units]
    assert [bool(one.no_projection) for one in said] == [False, True]
    assert [one.pixel_size_nm for one in said] == [pytest.approx(0.05), None]
