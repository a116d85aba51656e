"""Which folders make one series: said aloud, because np1 and np2 of one user may be meant as two."""

from __future__ import annotations

from collections.abc import Iterable

from aet_stream.config import Series
from aet_stream.naming import series_of, shown

SHOWN = 3


class Merging:
    """Notes where the images of each series lie."""

    def __init__(self, root_name: str, rules: Series) -> None:
        self._root_name = root_name
        self._rules = rules
        self._folders: dict[str, dict[str, None]] = {}
        self._said: set[str] = set()

    def note(self, paths: Iterable[str]) -> list[str]:
        """Take note of images; returns one sentence for each series that is now known to come from several folders, once."""
        if self._rules.by in ("file", "leaf"):
            return []
        if self._rules.by == "folder":  # decides for all in it, of which there may be very many
            paths = {path.rpartition("/")[0]: path for path in paths}.values()
        touched = set[str]()
        for path in paths:
            name = series_of(path, self._root_name, self._rules)
            self._folders.setdefault(name, {})[path.rpartition("/")[0]] = None
            touched.add(name)
        merged = [name for name in touched if len(self._folders[name]) > 1 and name not in self._said]
        self._said.update(merged)
        return [self._sentence(name) for name in sorted(merged)]

    def _sentence(self, name: str) -> str:
        folders = [shown(folder) or "the watched folder itself" for folder in self._folders[name]]
        some = ", ".join(folders[:SHOWN]) + (", ..." if len(folders) > SHOWN else "")
        other = "leaf" if self._rules.by == "folder" else "path_pattern"
        return f'series {shown(name)} is made of images in {len(folders)} folders ({some}): if they are not one, set series.by = "{other}"'
