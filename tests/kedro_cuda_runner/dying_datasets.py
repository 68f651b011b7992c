"""Datasets in whose ``save`` the process dies or hangs; a node's process imports them from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path, PurePosixPath

import gpu_nodes
from kedro.io import AbstractDataset, AbstractVersionedDataset

from ja_instruct.datasets import JSONLinesDataset
from ja_instruct.tables.atomic import replacing


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data[: len(data) // 2])


class TextThatDies(AbstractDataset):
    """Writes half of a text; with ``begins=False`` it dies before that."""

    def __init__(self, filepath, protocol="file", begins=True):
        self._filepath = PurePosixPath(filepath)
        self._protocol = protocol
        self._begins = begins

    def load(self):
        return Path(self._filepath).read_text()

    def save(self, data):
        if self._begins:
            write_half(self._filepath, data)
        die()

    def _describe(self):
        return {"filepath": str(self._filepath)}


class VersionedTextThatDies(AbstractVersionedDataset):
    """Writes half of a new version."""

    def load(self):
        return Path(self._get_load_path()).read_text()

    def _describe(self):
        return {"filepath": str(self._filepath)}

    def save(self, data):
        write_half(self._get_save_path(), data)
        die()


class DirectoryThatDies(TextThatDies):
    """Writes half of the second of two files; the first is always the same."""

    def save(self, data):
        folder = Path(self._filepath)
        folder.mkdir(exist_ok=True)
        (folder / "config").write_text("{}")
        write_half(folder / "weights", data)
        die()


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


class AppendedText(TextThatDies):
    """Appends every chunk; it is the node that dies."""

    def save(self, data):
        with Path(self._filepath).open("a") as file:
            file.write(data)


class TextThatHangs(TextThatDies):
    """Writes half, starts a process, and hangs."""

    def save(self, data):
        write_half(self._filepath, data)
        gpu_nodes.start_and_hang(Path(self._filepath).parent)


class StubbornText(TextThatDies):
    """Hangs, and ignores SIGTERM."""

    def save(self, data):
        write_half(self._filepath, data)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gpu_nodes.start_and_hang(Path(self._filepath).parent)
