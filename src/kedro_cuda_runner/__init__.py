"""A Kedro runner that places, isolates and checks nodes that use CUDA devices.

Any Kedro project can use it::

    kedro run --runner=kedro_cuda_runner.CudaRunner

Each node with the tag ``gpu`` runs in its own process on the devices that it declares; all other
nodes run as under Kedro's ``SequentialRunner``. See README.md in this package.
"""

from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.errors import CudaRunnerError, GpuNodeError, PreflightError

if TYPE_CHECKING:
    from kedro_cuda_runner.cuda_runner import CudaRunner

__all__ = ["CudaRunner", "CudaRunnerError", "GpuNodeError", "PreflightError"]


def __getattr__(name: str) -> Any:
    """Import ``CudaRunner`` on first use: a node's process disables logging before Kedro."""
    if name != "CudaRunner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kedro_cuda_runner.cuda_runner import CudaRunner

    return CudaRunner
