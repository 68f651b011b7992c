"""The error for input that the user can correct."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from kedro.io import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator


class InputError(DatasetError, click.ClickException, ValueError):
    """A file, parameter or environment of the user cannot be used.

    The message names the problem, its place (file, line, key) and the remedy. The command line
    prints a ``ClickException`` without a traceback, and Kedro's datasets do not wrap a
    ``DatasetError``. Its catalog does: ``ErrorMessageHook`` undoes that.
    """


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Put a prefix before the message of an ``InputError``."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}: {error}") from error


def find_message(error: BaseException) -> str:
    """Return the message of an error that was raised from an ``InputError``, or an empty string."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if cause is None:
        return ""
    # the catalog adds the dataset's name
    return str(error) if str(cause) in str(error) else str(cause)
