"""Errors of the runner: the command line shows them without a traceback, each with its remedy."""

import click


class CudaRunnerError(click.ClickException, RuntimeError):
    """The run cannot start, or a node in its own process has failed."""


class PreflightError(CudaRunnerError):
    """Raised before the first node runs, if a resource is missing or a declaration is invalid."""


class GpuNodeError(CudaRunnerError):
    """A node in its own process has failed.

    Attributes:
        node_name: Name of the node.
        reason: ``out of memory``, ``killed``, ``crashed``, ``exited`` or ``exception``.
    """

    def __init__(self, message: str, *, node_name: str, reason: str) -> None:
        super().__init__(message)
        self.node_name = node_name
        self.reason = reason
