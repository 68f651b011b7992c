"""Protocols of what a dataset can check or report without loading its data.

A dataset implements those that suit it; a dataset without them is checked for its file alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence


@runtime_checkable
class ChecksInput(Protocol):
    """An input that can be checked before the run."""

    def check(self) -> None:
        """Raise ``InputError`` if loading would fail."""


@runtime_checkable
class ChecksRecords(Protocol):
    """An input of records that can be read and checked before the run."""

    def check_records(self, columns: Sequence[str] = (), bad_records_max: int = 0) -> None:
        """Raise ``InputError`` if the records cannot be used.

        Args:
            columns: Columns that every record must have.
            bad_records_max: Allowed number of unreadable records, in a dataset that can load them.
        """


@runtime_checkable
class ChecksOutput(Protocol):
    """An output whose destination can be checked before the run."""

    def check_output(self) -> None:
        """Raise ``InputError`` if saving would fail."""


@runtime_checkable
class DescribesModel(Protocol):
    """A model whose size is known before its weights are loaded."""

    def parameter_count(self) -> int | None:
        """Return the number of weights; None if it is unknown."""

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``; None if it is not available yet."""


@runtime_checkable
class NamesModules(Protocol):
    """A model whose modules are known before its weights are loaded."""

    def module_names(self) -> frozenset[str] | None:
        """Return the names of the modules with a weight of at least two dimensions, or None.

        None: they are not known yet.
        """


@runtime_checkable
class StoresWeights(Protocol):
    """A model whose files' size is known before they are read."""

    def weights_bytes(self) -> int:
        """Return the size of the weights in the types that they are stored in; 0 if unknown."""


@runtime_checkable
class Downloads(Protocol):
    """An input that is downloaded when it is loaded."""

    def pending_download_bytes(self) -> int:
        """Return how many bytes loading would download."""
