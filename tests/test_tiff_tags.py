"""What instruments write into TIFF beside the pixels: JEOL, FEI, OME, pages that are no images; none of it costs an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aet_stream.errors import SourceError
from tests.looks import IMAGE, is_read, looked, pixels_of
from tests.tiff_files import page, tiff

JEOL = "<TemReporter><GonioStage><StagePosition><TX>-34.5</TX></StagePosition></GonioStage></TemReporter>"
HEAD = '<?xml version="1.0"?>\r\n'


def described(folder: Path, text: bytes) -> Path:
    path = folder / "x.tif"
    path.write_bytes(tiff(page(IMAGE, (270, "s", text))))
    return path


@pytest.mark.parametrize("behind", [b"", b"\0", b"\0" * 500 + b"\1\0", b"\0\xff\xfejunk\0", b" \r\n\t\0", b"\r\n<!-- 12 -->\0", b"garbage"])
@pytest.mark.parametrize("head", [HEAD, "", "\ufeff" + HEAD, "<!-- SightX -->\r\n"])
def test_what_lies_around_a_jeol_report_does_not_matter(tmp_path: Path, head: str, behind: bytes) -> None:
    """Padding, stray bytes behind NULs, comments, a mark of the byte order."""
    assert is_read(described(tmp_path, (head + JEOL).encode() + behind)) == ""


@pytest.mark.parametrize(
    "text",
    [JEOL[:-20], JEOL.replace("<TX>", "<TX><"), JEOL.replace("StagePosition", "Stage", 1), "<TemReporter>\0" + JEOL,
     f"<TemReporter><!DOCTYPE a [<!ENTITY x 'y'>]>{JEOL[13:]}", JEOL.replace("<TX>", "<TX>\x01")],
)  # fmt: skip
def test_a_broken_jeol_report_costs_no_image(tmp_path: Path, text: str) -> None:
    """Cut, torn, with a control character or entities, which no parser is given: the tilt is not known, and why is said."""
    assert "XML" in is_read(described(tmp_path, text.encode() + b"\0"), None)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\xb5", b"ImageJ=1.54\nunit=\\u00B5m\nimages=x\n", b"<OME><Image", b'{"shape": [', b"\0\0", b"<OME/>"]
)
def test_strange_descriptions_cost_no_image(tmp_path: Path, text: bytes) -> None:
    """Of whatever program they seem to be."""
    is_read(described(tmp_path, text), None)


@pytest.mark.parametrize("tag", [33629, 34118, 34361, 37706, 34682, 34683, 50838, 65000, 65009, 65027, 65450])
def test_strange_tags_of_instruments_cost_no_image(tmp_path: Path, tag: int) -> None:
    """Bytes that mean nothing in the private tags that libraries know of: FEI, Zeiss, MetaMorph, TVIPS, Gatan, ImageJ, CXF."""
    for content in (b"\0" * 3000, bytes(range(256)) * 12, b"<a><b>" + b"x" * 200):
        path = tmp_path / "x.tif"
        path.write_bytes(tiff(page(IMAGE, (tag, 7, content))))
        is_read(path, None)


SMALL = IMAGE[::4, ::4].copy()
COLOUR = np.repeat(SMALL.astype("u1")[..., None], 3, axis=2)


@pytest.mark.parametrize("thumbnail", [SMALL, COLOUR, IMAGE.astype("<f4")], ids=["small", "colour", "other type"])
@pytest.mark.parametrize("first", [True, False])
def test_a_page_that_is_marked_as_a_thumbnail_is_no_image(tmp_path: Path, thumbnail: np.ndarray, first: bool) -> None:
    """By NewSubfileType or its predecessor, before or behind the images; a stack keeps all its images, in order."""
    path = tmp_path / "x.tif"
    for mark in ([(254, 4, 1)], [(254, 4, 4)], [(254, 4, 0), (255, 3, 2)]):
        pages = [page(IMAGE), page(IMAGE + 1)]
        pages.insert(0 if first else 2, page(thumbnail, *mark))
        path.write_bytes(tiff(*pages))
        assert np.array_equal(pixels_of(path), [IMAGE, IMAGE + 1])
        assert len(looked(path).units) == 2


def test_pages_that_are_only_called_smaller_stay_images(tmp_path: Path) -> None:
    """A mark on pages like the others, or on all of them, takes nothing away; unmarked pages of two sizes are refused."""
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(page(IMAGE), page(IMAGE + 1, marked=1)))
    assert np.array_equal(pixels_of(path), [IMAGE, IMAGE + 1])
    path.write_bytes(tiff(page(IMAGE, marked=1)))
    assert is_read(path, None) == ""
    path.write_bytes(tiff(page(IMAGE), page(SMALL)))
    with pytest.raises(SourceError, match="different sizes"):
        looked(path)


# -- FEI and OME ----------------------------------------------------------------------------------------------------

ROWS = "".join(
    f"<Data><Label>{label}</Label><Value>{value}</Value><Unit>{unit}</Unit></Data>"
    for label, value, unit in (
        ("Microscope", "Titan", ""),
        ("Stage X", "1.5", "um"),
        ("Stage A", "-34.50", "deg"),
        ("Stage B", "0.2", "deg"),
    )
)
TITAN = f"<Root>{ROWS}<PixelsSize><X>5e-11</X><Y>5e-11</Y></PixelsSize></Root>"
SCHEMA = (
    '<Metadata xmlns="http://www.fei.com"><StageSettings><StagePosition><Tilt><Alpha>-0.60213859193804</Alpha></Tilt></StagePosition>'
    '</StageSettings><BinaryResult><PixelSize><X unit="nm">0.05</X><Y unit="nm">0.05</Y></PixelSize><Detector>HAADF</Detector>'
    "</BinaryResult></Metadata>"
)
STEP = "<value>5E-11</value><unit>m</unit>"
MAPS = f"<FeiImage><pixelWidth>{STEP}</pixelWidth><pixelHeight>{STEP}</pixelHeight></FeiImage>"
HELIOS = "[User]\r\nDate=03/01/2024\r\n[Scan]\r\nPixelWidth=5e-11\r\nPixelHeight=5e-11\r\n[Stage]\r\nStageT=0.9\r\n"


@pytest.mark.parametrize(
    ("tag", "text", "tilt_deg", "size_nm"),
    [
        (34683, TITAN, -34.5, 0.05),
        (34683, '<?xml version="1.0" encoding="utf-8"?>' + TITAN, -34.5, 0.05),
        (34683, TITAN.replace("-34.50", "-0.60213859193804").replace(">deg<", ">rad<"), -34.5, 0.05),
        (34683, SCHEMA, -34.5, 0.05),
        (34682, SCHEMA, -34.5, 0.05),
        (34683, MAPS, None, 0.05),
        (34682, HELIOS, None, 0.05),
        (34680, HELIOS, None, 0.05),
        (34683, TITAN.replace("1.5", "0").replace("-34.50", "0").replace("0.2", "0"), None, 0.05),
        (34683, TITAN.replace("5e-11", "5e+08"), -34.5, None),
    ],
)
def test_fei_tags_of_a_tiff_are_read(tmp_path: Path, tag: int, text: str, tilt_deg: float | None, size_nm: float | None) -> None:
    """Its XML (tables of labels in their units; the later schema in radians), its lines of text; a stage that was not read says nothing."""
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(page(IMAGE, (tag, "s", text.encode() + b"\0"))))
    (unit,) = looked(path).units
    assert unit.acquisition.tilt_deg == (None if tilt_deg is None else pytest.approx(tilt_deg))
    assert unit.acquisition.pixel_size_nm == (None if size_nm is None else pytest.approx(size_nm))
    assert np.array_equal(pixels_of(path), [IMAGE])


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels SizeX="40" SizeY="48" {}/></Image>{}</OME>'
)
OTHER = '<Image><Pixels SizeX="{}" SizeY="{}" PhysicalSizeX="3" PhysicalSizeY="3"/></Image>'


@pytest.mark.parametrize(
    ("said", "more", "size_nm"),
    [
        ('PhysicalSizeX="0.05" PhysicalSizeXUnit="nm" PhysicalSizeY="0.05" PhysicalSizeYUnit="nm"', "", 0.05),
        ('PhysicalSizeX="5e-05" PhysicalSizeY="5e-05"', "", 0.05),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="Å" PhysicalSizeY="50" PhysicalSizeYUnit="pm"', "", 0.05),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', "", None),
        ('PhysicalSizeX="5e-05"', "", None),
        ("", "", None),
        ('PhysicalSizeX="5e-05" PhysicalSizeY="5e-05"', OTHER.format(9, 9), 0.05),
        ('PhysicalSizeX="5e-05" PhysicalSizeY="5e-05"', OTHER.format(40, 48), None),
    ],
)
def test_an_ome_tiff_has_its_pixel_size(tmp_path: Path, said: str, more: str, size_nm: float | None) -> None:
    """In the unit that stands beside it, micrometres where none does; of all pages of a stack; of another image's size nothing."""
    path = tmp_path / "x.ome.tif"
    text = (HEAD + "<!-- Warning: this comment is an OME-XML metadata block -->" + OME.format(said, more)).encode() + b"\0"
    path.write_bytes(tiff(page(IMAGE, (270, "s", text)), page(IMAGE + 1)))
    sizes = [unit.acquisition.pixel_size_nm for unit in looked(path).units]
    assert sizes == [None if size_nm is None else pytest.approx(size_nm)] * 2
    assert np.array_equal(pixels_of(path), [IMAGE, IMAGE + 1])
