"""A Kedro runner that places, isolates and checks nodes that use CUDA devices.

Any Kedro project can use it::

    kedro run --runner=kedro_cuda_runner.CudaRunner

Each node with the tag ``gpu`` runs in its own process on the devices that it declares; all other
nodes run as under Kedro's ``SequentialRunner``. See README.md in this package.
"""

from kedro_cuda_runner.cuda_runner import CudaRunner
from kedro_cuda_runner.errors import CudaRunnerError, GpuNodeError, PreflightError

__all__ = ["CudaRunner", "CudaRunnerError", "GpuNodeError", "PreflightError"]
