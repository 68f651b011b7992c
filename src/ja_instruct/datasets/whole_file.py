"""``WholeFile``: makes kedro-datasets' classes of one local file save atomically."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractVersionedDataset, DatasetError

from ja_instruct.datasets.base import CatalogDataset, require_no_directory
from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import discard_unfinished, replacing
from ja_instruct.tables.json_objects import describe_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import AbstractFileSystem


class _AtomicFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files; one that is opened for writing appears when its ``with`` block ends."""

    @contextmanager
    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Iterator[Any]:
        """Open a file; ``kwargs`` are those of fsspec's ``open``."""
        plain = LocalFileSystem()  # its ``open`` calls itself with another mode
        if "w" not in mode:
            with plain.open(path, mode, **kwargs) as file:
                yield file
            return
        with replacing(Path(path)) as new, plain.open(str(new), mode, **kwargs) as file:
            yield file


class WholeFile(CatalogDataset[Any, Any], AbstractVersionedDataset[Any, Any]):
    """Saves a local file atomically, and names a file that cannot be read.

    Put it before a class of kedro-datasets that opens its file with ``self._fs``. Arguments,
    versions, remote file systems and the previews in kedro-viz are those of that class.
    """

    if TYPE_CHECKING:

        def __init__(self, **kwargs: Any) -> None:
            """Take the arguments of the library's class."""

    @property
    def _fs(self) -> AbstractFileSystem:
        file_system: AbstractFileSystem = self.__dict__["_fs"]
        return file_system

    @_fs.setter
    def _fs(self, file_system: AbstractFileSystem) -> None:
        """Called by the library's ``__init__``."""
        is_local = isinstance(file_system, LocalFileSystem)
        self.__dict__["_fs"] = _AtomicFileSystem() if is_local else file_system

    def check(self) -> None:
        """Raise ``InputError`` unless the file exists and can be loaded."""
        if not self.exists():
            raise InputError(f"{self._filepath} does not exist")
        self.load()

    def check_output(self) -> None:
        """Raise ``InputError`` if a directory is in the place of the file."""
        if not self._version:
            require_no_directory(Path(self._filepath))

    def load(self) -> Any:
        """Return the content.

        Raises:
            InputError: The file is empty, truncated, of another type or in another encoding.
        """
        try:
            return super().load()  # type: ignore[safe-super]  # the library's
        except DatasetError as error:
            if isinstance(error.__cause__, ValueError | TypeError):
                path = Path(self._get_load_path())
                raise InputError(
                    f"{path}: {describe_fault(error.__cause__, path)}; it was cut off or edited: "
                    f"remove it, and run its pipeline again"
                ) from error
            raise

    def discard_unfinished(self) -> None:
        """Remove what a process left behind that was killed while it saved."""
        path = Path(self._filepath)
        if not self._version:
            discard_unfinished(path)
            return
        for version in path.glob("*/"):
            discard_unfinished(version / path.name)
            if not any(version.iterdir()):
                version.rmdir()
