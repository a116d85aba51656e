"""A stored series again from its raw, with another model: an edition beside the first. Killed, it leaves the series as it was."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from aet_stream import durable, edition, layout
from aet_stream.config import Denoise
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.estimators import named
from aet_stream.edition import Covered, Edition, Maker
from aet_stream.errors import StoreError
from aet_stream.series import Series

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def maker_of(settings: Denoise) -> Maker:
    """Who makes the edition: a model by the hash of its weights, and what else decides its results.

    Raises
    ------
    ModelError : there is no such model, or it is not what it should be
    """
    said = {"fusion": settings.fusion, "precision": settings.precision, "tile_px": settings.tile_px}
    return Maker("reprocess", *named(settings), said)


def make_edition(path: Path, denoiser: Denoiser, maker: Maker, *, progress: Progress = lambda done, total: None) -> Path:
    """Subtract every projection of a series anew; returns the edition's file, which waits for the hub. Done already, it returns at once.

    Each projection is kept as it is done, so that one that was stopped goes on from there.

    Parameters
    ----------
    path : a series.h5, open or closed; projections that come meanwhile are not in it
    progress : called with (projections done, in all)

    Raises
    ------
    StoreError : the series is damaged
    OutputFull : the disk does not take it
    """
    folder = path.absolute().parent
    parts = folder / layout.EDITIONS / f".parts_{maker.key}"
    with Series(path) as series:
        covered = edition.covered(series)
        done = edition.find(folder, maker, covered)
        if done is None:
            durable.make_folder(parts)
            for row, each in enumerate(covered):
                if not _is_there(_part(parts, each), each):
                    result = denoiser.subtract(series.raw(row))
                    with edition.writing(folder, folder.name, maker, [each], series.shape, target=_part(parts, each)) as draft:
                        draft.row(result.clean, result.quality)
                progress(row + 1, len(covered))
            with edition.writing(folder, folder.name, maker, covered, series.shape) as draft:
                for each in covered:
                    with Edition(_part(parts, each)) as part:
                        draft.row(part.clean(each.number), part.rows[each.number].quality)
            done = edition.made_path(folder, maker.key)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(parts)
    return done


def _part(parts: Path, each: Covered) -> Path:
    return parts / layout.file_name(each.number)


def _is_there(path: Path, each: Covered) -> bool:
    """Has it been subtracted before this was stopped?"""
    try:
        with Edition(path) as part:
            return part.rows[each.number].covered == each and not part.doubts()
    except (StoreError, KeyError):
        return False
