"""The error of this package: the command line shows it without a traceback."""

import click


class FreshnessError(click.ClickException, RuntimeError):
    """A run would rewrite what another environment made, or a setting is wrong."""
