"""A Kedro runner for CUDA devices: nodes placed, isolated and checked before they cost anything.

It knows nothing of the project that it runs, so any Kedro project can use it::

    kedro run --runner=kedro_cuda_runner.CudaRunner

Nodes with the tag ``gpu`` get a process of their own and the devices they declare to need; all
others run as under Kedro's ``SequentialRunner``. ``docs/cuda_runner.md`` has the rest.
"""

from kedro_cuda_runner.cuda_runner import CudaRunner
from kedro_cuda_runner.errors import CudaRunnerError, GpuNodeError, PreflightError

__all__ = ["CudaRunner", "CudaRunnerError", "GpuNodeError", "PreflightError"]
