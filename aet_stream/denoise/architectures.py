"""Networks by their weights files. With on_blocks.py and in_tiles.py the only room of the daemon with torch."""

from __future__ import annotations

from pathlib import Path

from aet_stream.denoise.coarse_grid import OnBlocks
from aet_stream.denoise.in_tiles import InTiles
from aet_stream.denoise.weights_file import load_card


def load_network(path: Path, *, device: str, precision: str, tile_px: int, threads: int) -> OnBlocks | InTiles:
    """The network in a weights file, ready to work.

    Parameters
    ----------
    threads : 0: as is fastest, one for a network on blocks and all cores at full resolution

    Raises
    ------
    ModelError : the file, its card or the device is not what it should be
    """
    card = load_card(path)
    if card.architecture == "Coarse":
        return OnBlocks(path, card, device=device, threads=threads)
    return InTiles(path, card, device=device, precision=precision, tile_px=tile_px, threads=threads)
