"""The parts that the project's datasets share: one path, inputs that are only read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import discard_unfinished

Saved = TypeVar("Saved")
Loaded = TypeVar("Loaded")


class CatalogDataset(AbstractDataset[Saved, Loaded]):
    """A dataset that is described by the arguments of its catalog entry."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let Kedro record the arguments of an inherited ``__init__`` by their names."""
        inherits = "__init__" not in vars(cls)
        super().__init_subclass__(**kwargs)
        if inherits:  # Kedro has put a wrapper there, whose arguments are *args and **kwargs
            del cls.__init__

    def _describe(self) -> dict[str, Any]:
        # Kedro keeps the arguments of __init__ to write catalog entries from datasets
        arguments: dict[str, Any] = self._init_args  # type: ignore[attr-defined]
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in arguments.items()
            if name != "metadata"
        }


# otherwise a library's ``__init__`` would not be found behind this class
del CatalogDataset.__init__


class InputDataset(CatalogDataset[None, Loaded]):
    """A dataset that is only loaded.

    Attributes:
        SAVE_ERROR: The reason why it cannot be saved to.
    """

    SAVE_ERROR: ClassVar[str] = "this catalog entry is an input and is never written to"

    def save(self, data: None) -> NoReturn:
        """Raise a ``DatasetError``."""
        raise DatasetError(f"{self}: {self.SAVE_ERROR}")


def require_no_directory(path: Path) -> None:
    """Raise ``InputError`` if a directory is in the place of a file."""
    if path.is_dir():
        raise InputError(
            f"{path}: a directory is in the place of the file; move it away, or set another "
            f"filepath in the catalog"
        )


class PathDataset(CatalogDataset[Saved, Loaded]):
    """A dataset of one file."""

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The file or directory.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def discard_unfinished(self) -> None:
        """Remove what a process left behind that was killed while it saved."""
        discard_unfinished(self._filepath)

    def check_output(self) -> None:
        """Raise ``InputError`` if a directory is in the place of the file."""
        require_no_directory(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()


class DirectoryDataset(PathDataset[Saved, Loaded]):
    """A dataset of one directory.

    Attributes:
        MARKER: A file that every such directory has.
    """

    MARKER: ClassVar[str]

    def check_output(self) -> None:
        """Raise ``InputError`` if saving would replace something else."""
        path = self._filepath
        if path.is_dir() and any(path.iterdir()) and not self._exists():
            raise InputError(
                f"{path}: this directory has no {self.MARKER}, so it was not written here, and "
                f"saving would replace it; move it away, or set another filepath in the catalog"
            )
        if path.exists() and not path.is_dir():
            raise InputError(
                f"{path}: a file is in the place of the directory; move it away, or set another "
                f"filepath in the catalog"
            )

    def _exists(self) -> bool:
        return (self._filepath / self.MARKER).is_file()


class InputPathDataset(InputDataset[Loaded], PathDataset[None, Loaded]):
    """A dataset of one file or directory that is only loaded."""
