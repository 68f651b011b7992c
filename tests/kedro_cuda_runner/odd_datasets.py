"""Unusual datasets, and a validator, for the catalog in a node's process."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kedro.io import AbstractDataset
from kedro_datasets.text import TextDataset


class ConfirmedDataset(TextDataset):
    """Text in a file; a file beside it says whether it was confirmed."""

    def confirm(self):
        Path(self._filepath).with_suffix(".confirmed").touch()


class ConfirmedHereDataset(ConfirmedDataset):
    """The same, for the runner's process alone."""

    _SINGLE_PROCESS = True


class HeldDataset(AbstractDataset):
    """Data behind a handle that cannot be pickled; no attribute marks it."""

    def __init__(self):
        self._convert = lambda data: list(data)
        self._data = None

    def load(self):
        return self._data

    def save(self, data):
        self._data = self._convert(data)

    def _release(self):
        self._data = None

    def _describe(self):
        return {}


class LateOnOthersDataset(TextDataset):
    """Lets rank 0 go ahead of the other processes of a node."""

    def load(self):
        if os.environ.get("RANK", "0") != "0":
            time.sleep(0.5)


class PositiveValidator:
    """Accepts numbers above zero, and rounds them."""

    def validate(self, data):
        if any(value <= 0 for value in data):
            raise ValueError("not all are positive")
        return [round(value) for value in data]
