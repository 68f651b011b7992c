"""The error for input that the user can correct."""

import click
from kedro.io import DatasetError


class InputError(DatasetError, click.ClickException, ValueError):
    """A file, parameter or environment of the user cannot be used.

    The message names the problem, its place (file, line, key) and the remedy. The command line
    prints a ``ClickException`` without a traceback, and Kedro's catalog does not wrap a
    ``DatasetError``.
    """
