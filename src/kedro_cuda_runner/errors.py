"""What the runner raises; on the command line without a traceback, each says what to do."""

import click


class CudaRunnerError(click.ClickException, RuntimeError):
    """The run cannot start, or a node in a process of its own has failed."""


class PreflightError(CudaRunnerError):
    """Something that a node needs is not there; raised before the first node runs."""


class GpuNodeError(CudaRunnerError):
    """A node in a process of its own has failed.

    Attributes:
        node_name: The node.
        reason: ``out of memory``, ``killed``, ``crashed``, ``exited`` or ``exception``.
    """

    def __init__(self, message: str, *, node_name: str, reason: str) -> None:
        super().__init__(message)
        self.node_name = node_name
        self.reason = reason
