"""Datasets in whose ``save`` the process dies or hangs; a node's process imports them from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gpu_nodes
from kedro.io import AbstractDataset
from kedro_datasets.text import TextDataset

from ja_instruct.datasets import JSONLinesDataset
from ja_instruct.tables.atomic import replacing


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class TextThatDies(TextDataset):
    """Writes half of a text, into a new version if it has versions."""

    def save(self, data):
        self.write_half(Path(self._get_save_path()), data)
        die()

    def write_half(self, path, data):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[: len(data) // 2])


class TextThatDiesFirst(TextDataset):
    """Writes nothing."""

    def save(self, data):
        die()


class DirectoryThatDies(TextThatDies):
    """Writes half of the second of two files; the first is always the same."""

    def write_half(self, path, data):
        super().write_half(path / "weights", data)
        (path / "config").write_text("{}")


class FolderOfParts(AbstractDataset):
    """Has no path that the runner knows."""

    def __init__(self, path):
        self._path = path

    def load(self):
        return None

    def save(self, data):
        die()

    def _describe(self):
        return {"path": self._path}


class JSONLinesThatDie(JSONLinesDataset):
    """Writes half of its temporary sibling."""

    def save(self, data):
        with replacing(self._filepath) as new:
            new.write_text('{"input": "半')
            die()


class AppendedText(TextDataset):
    """Appends every chunk; it is the node that dies."""

    def save(self, data):
        with Path(self._filepath).open("a") as file:
            file.write(data)


class TextThatHangs(TextThatDies):
    """Writes half, starts a process, and hangs."""

    def write_half(self, path, data):
        super().write_half(path, data)
        gpu_nodes.start_and_hang(path.parent)


class StubbornText(TextThatHangs):
    """Hangs, and ignores SIGTERM."""

    def save(self, data):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().save(data)
