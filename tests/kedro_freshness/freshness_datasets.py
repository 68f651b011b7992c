"""Datasets that save in place, and end the process while they do."""

from __future__ import annotations

from pathlib import Path

from kedro.io import AbstractDataset


class Killed(BaseException):
    """The end of the process: no hook and no handler of exceptions sees it."""


class InPlaceDataset(AbstractDataset):
    """A text that is written in place.

    Attributes:
        killed_after: Number of characters after which the process ends, at the next save only.
    """

    killed_after: int | None = None

    def __init__(self, filepath, mode="w", metadata=None):
        self._filepath = Path(filepath)
        self._mode = mode
        self.metadata = metadata

    def load(self):
        return self._filepath.read_text()

    def save(self, data):
        count, InPlaceDataset.killed_after = InPlaceDataset.killed_after, None
        if count == 0:
            raise Killed
        mode = self._mode if self._filepath.exists() else "w"
        with self._filepath.open(mode) as file:
            file.write(data[:count])
        if count:
            raise Killed

    def _exists(self):
        return self._filepath.exists()

    def _describe(self):
        return {"filepath": self._filepath}


class ServerDataset(AbstractDataset):
    """A text on a server, which is a dictionary here."""

    texts: dict[str, str] = {}  # noqa: RUF012 - the server is shared

    def __init__(self, table, options=None):
        self._table = table
        self._options = options

    def load(self):
        return self.texts[self._table]

    def save(self, data):
        self.texts[self._table] = data

    def _exists(self):
        return self._table in self.texts

    def _describe(self):
        return {"table": self._table, "options": self._options}


class FingerprintedDataset(InPlaceDataset):
    """A text whose own fingerprint leaves out its case."""

    def fingerprint(self):
        return self._filepath.read_text().lower() if self._filepath.exists() else None


class HandleDataset(FingerprintedDataset):
    """A handle on a text that is downloaded when the handle is used."""

    def load(self):
        return lambda: self._filepath.write_text("downloaded")
