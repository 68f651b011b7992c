"""The error a person can act on."""

import click
from kedro.io import DatasetError


class InputError(DatasetError, click.ClickException, ValueError):
    """Something the user gave cannot be used.

    The message names what is wrong, where (file, line, key) and the remedy. As a
    ``ClickException`` it is shown on the command line without a traceback; as a ``DatasetError``
    it passes through Kedro's catalog unwrapped.
    """
