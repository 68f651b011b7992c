"""Datasets in whose ``save`` the process dies or hangs; a process of its own finds them here."""

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
            Path(self._filepath).write_text(data[: len(data) // 2])
        die()

    def _describe(self):
        return {"filepath": str(self._filepath)}


class VersionedTextThatDies(AbstractVersionedDataset):
    """Writes half of a new version."""

    def load(self):
        return Path(self._get_load_path()).read_text()

    def save(self, data):
        path = Path(self._get_save_path())
        path.parent.mkdir(parents=True)
        path.write_text(data[: len(data) // 2])
        die()

    def _describe(self):
        return {"filepath": str(self._filepath)}


class DirectoryThatDies(AbstractDataset):
    """Writes half of the second of two files; the first is always the same."""

    def __init__(self, filepath):
        self._filepath = PurePosixPath(filepath)

    def load(self):
        return {path.name: path.read_text() for path in Path(self._filepath).iterdir()}

    def save(self, data):
        folder = Path(self._filepath)
        folder.mkdir(exist_ok=True)
        (folder / "config").write_text("{}")
        (folder / "weights").write_text(data[: len(data) // 2])
        die()

    def _describe(self):
        return {"filepath": str(self._filepath)}


class FolderOfParts(AbstractDataset):
    """Does not say where it saves in a way that others know."""

    def __init__(self, path):
        self._path = path

    def load(self):
        return None

    def save(self, data):
        die()

    def _describe(self):
        return {"path": self._path}


class JSONLinesThatDie(JSONLinesDataset):
    """Writes half of its sibling."""

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
        path = Path(self._filepath)
        path.write_text(data[: len(data) // 2])
        gpu_nodes.start_and_hang(path.parent)


class StubbornText(TextThatDies):
    """Hangs, and does not end when asked to."""

    def save(self, data):
        path = Path(self._filepath)
        path.write_text(data[: len(data) // 2])
        gpu_nodes.ignore_termination(path.parent)
