"""The interface to the hardware: the CUDA devices and their current use."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import runpy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from kedro_cuda_runner import cuda_driver
from kedro_cuda_runner.cuda_driver import LIBRARY, NO_DEVICE, DriverDevice, DriverError
from kedro_cuda_runner.errors import CudaRunnerError

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"

# the driver's codes: https://docs.nvidia.com/cuda/cuda-driver-api, CUresult
REMEDIES = {
    34: f"{LIBRARY} is the toolkit's stub: take its folder out of LD_LIBRARY_PATH",
    NO_DEVICE: "'nvidia-smi' should list a GPU; a container needs '--gpus all'",
    802: "the machine's NVSwitch is not ready: start nvidia-fabricmanager",
    803: f"{LIBRARY} and the loaded kernel module are of different versions: reboot after an "
    f"update of the driver, or rebuild the container",
    804: "the image brings a newer driver library than the GPU can use: remove cuda-compat",
    999: "the kernel module may not be loaded: try 'nvidia-modprobe -u -c=0', or reboot",
}
# the first driver of each major version of CUDA: https://docs.nvidia.com/deploy/cuda-compatibility
DRIVERS = {12: 525, 13: 580}


class NoDevicesError(CudaRunnerError):
    """No CUDA device can be used; the message says why."""


@dataclass(frozen=True)
class Device:
    """A CUDA device that this process may use.

    Attributes:
        index: CUDA's index among the visible devices: 0 for ``cuda:0``.
        uuid: ``GPU-…``, or ``MIG-…`` for a slice of a GPU.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int


class DeviceLayer(Protocol):
    """The hardware as the runner uses it; tests replace it.

    ``find`` raises ``NoDevicesError`` if no device can be used, ``free_bytes`` and ``used_bytes``
    raise ``CudaRunnerError`` if a device does not respond.
    """

    def find(self) -> list[Device]:
        """Return the visible devices, at least one, in CUDA's order."""

    def free_bytes(self, device: Device) -> int:
        """Return the free memory; all memory if it is unknown."""

    def used_bytes(self, device: Device) -> int | None:
        """Return the memory that all processes and the driver use; None if unknown."""

    def utilization_percent(self, device: Device) -> int | None:
        """Return the share of the last moment in which a kernel ran; None if unknown."""

    def process_bytes(self, device: Device, pids: Collection[int]) -> int | None:
        """Return the memory that these processes use together; None if unknown."""

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Return the variables with which a child sees exactly these devices, in this order."""


class NvidiaDevices:
    """The real devices, found through the CUDA driver and observed through NVML.

    Without NVML, or for a device that NVML does not support (Jetson, some virtual GPUs), all memory
    counts as free and the use is unknown.

    Args:
        query: Returns the devices that a process with a given environment sees.
        nvml: The module ``pynvml`` or a fake of it; None imports it.
    """

    def __init__(
        self,
        query: Callable[[Mapping[str, str]], list[DriverDevice]] = cuda_driver.query_driver,
        nvml: Any = None,
    ) -> None:
        self._query = query
        self._given_nvml = nvml
        self._handles: dict[str, Any] = {}
        self._found: dict[tuple[str | None, ...], list[Device]] = {}

    def find(self) -> list[Device]:
        """See ``DeviceLayer``; nothing is allocated on the devices."""
        variables = tuple(os.environ.get(name) for name in (VISIBLE, ORDER))
        if variables in self._found:  # a query takes up to a second, and a run makes several
            return self._found[variables]
        try:
            devices = self._query(os.environ)
            if not devices:
                raise DriverError("cuDeviceGetCount", NO_DEVICE, "no device")
        except DriverError as error:
            raise self._no_devices(error) from error
        if problem := _torch_problem(devices[0].cuda_version):
            raise NoDevicesError(f"the CUDA devices cannot be used: {problem}")
        self._found[variables] = [
            Device(index, self._full_uuid(found), found.name, found.memory_bytes)
            for index, found in enumerate(devices)
        ]
        return self._found[variables]

    def _no_devices(self, error: DriverError) -> NoDevicesError:
        if not error.function:
            reason = (
                f"{LIBRARY}, the NVIDIA driver's library, cannot be loaded ({error.name}; a "
                f"container needs '--gpus all')"
            )
        elif hidden := self._count_hidden():
            reason = (
                f"{VISIBLE}={os.environ[VISIBLE]!r} hides all of the {hidden} there are; unset it, "
                f"or name devices that 'nvidia-smi -L' lists"
            )
        elif error.code == NO_DEVICE:
            reason = f"the NVIDIA driver finds none; {REMEDIES[NO_DEVICE]}"
        else:
            code = "" if error.code is None else f" ({error.code})"
            remedy = REMEDIES.get(error.code or 0, "see whether 'nvidia-smi' works")
            reason = f"the NVIDIA driver's {error.function} failed: {error.name}{code}; {remedy}"
        return NoDevicesError(f"there is no CUDA device: {reason}")

    def _count_hidden(self) -> int:
        if VISIBLE not in os.environ:
            return 0
        try:
            return len(self._query({k: v for k, v in os.environ.items() if k != VISIBLE}))
        except DriverError:
            return 0

    def _full_uuid(self, found: DriverDevice) -> str:
        prefixes = ("MIG-", "GPU-") if found.is_mig else ("GPU-", "MIG-")
        for uuid in [prefix + found.uuid for prefix in prefixes]:
            try:
                if self._handle(uuid) is not None:
                    return uuid
            except self._nvml.NVMLError:
                continue
        return prefixes[0] + found.uuid

    @cached_property
    def _nvml(self) -> Any:
        """The initialized module ``pynvml``; None if it cannot be used."""
        nvml = self._given_nvml
        if nvml is None and importlib.util.find_spec("pynvml") is None:
            logger.warning("Package 'nvidia-ml-py' is missing: all GPU memory counts as free")
            return None
        nvml = nvml or importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            logger.warning("NVML cannot be used (%s): all GPU memory counts as free", error)
            return None
        return nvml

    def _handle(self, uuid: str) -> Any:
        if self._nvml is None:
            return None
        if uuid not in self._handles:
            self._handles[uuid] = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def _call_nvml(self, device: Device, function: str, *, may_fail: bool = True) -> Any:
        """Return the result of an NVML function for a device; None if it is not supported.

        Raises:
            CudaRunnerError: The device is lost or needs a reset, and the call must not fail.
        """
        nvml = self._nvml
        if nvml is None:
            return None
        try:
            return getattr(nvml, function)(self._handle(device.uuid))
        except nvml.NVMLError as error:
            if may_fail or error.value in (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_NOT_FOUND,
            ):
                return None
            raise CudaRunnerError(
                f"cuda:{device.index} ({device.name}, {device.uuid}) does not report its free "
                f"memory: {error} (NVML {error.value}); check 'nvidia-smi' and 'dmesg'"
            ) from error

    def free_bytes(self, device: Device) -> int:
        """See ``DeviceLayer``."""
        memory = self._call_nvml(device, "nvmlDeviceGetMemoryInfo", may_fail=False)
        return device.memory_bytes if memory is None else int(memory.free)

    def used_bytes(self, device: Device) -> int | None:
        """See ``DeviceLayer``."""
        memory = self._call_nvml(device, "nvmlDeviceGetMemoryInfo", may_fail=False)
        return None if memory is None else int(memory.used)

    def utilization_percent(self, device: Device) -> int | None:
        """See ``DeviceLayer``; None for a MIG slice."""
        rates = self._call_nvml(device, "nvmlDeviceGetUtilizationRates")
        return None if rates is None else int(rates.gpu)

    def process_bytes(self, device: Device, pids: Collection[int]) -> int | None:
        """See ``DeviceLayer``.

        None if NVML lists none of the processes: they use nothing on the device, or an older driver
        lists other process ids inside a container. None also if NVML lists one without its memory,
        as newer drivers do inside a container.
        """
        by_pid: dict[int, int] = {}
        # a process that computes and draws is on two of the lists, each time with all its memory
        for kind in ("Compute", "MPSCompute", "Graphics"):
            for process in self._call_nvml(device, f"nvmlDeviceGet{kind}RunningProcesses") or ():
                if process.pid in pids:
                    if not process.usedGpuMemory:
                        return None
                    by_pid[process.pid] = max(by_pid.get(process.pid, 0), process.usedGpuMemory)
        return sum(by_pid.values()) if by_pid else None

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """See ``DeviceLayer``; ``CUDA_DEVICE_ORDER`` does not affect UUIDs."""
        return {VISIBLE: ",".join(device.uuid for device in devices)}


def _torch_problem(driver_cuda: int) -> str | None:
    """Return why the installed PyTorch cannot use CUDA, without importing it: that is slow.

    ``driver_cuda`` is the newest version that the driver supports, 13000 for 13.0. A driver
    supports all minor versions of its major one and of earlier ones.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    version = runpy.run_path(str(version_file)) if version_file.is_file() else {"cuda": ""}
    name = f"the installed torch {version.get('__version__', '')}"
    cuda = version.get("cuda")
    if cuda is not None:
        major = int(cuda.partition(".")[0] or 0)
        if driver_cuda // 1000 >= major:
            return None
        least = f", which needs driver {DRIVERS[major]} or newer" if major in DRIVERS else ""
        supported = f"{driver_cuda // 1000}.{driver_cuda % 1000 // 10}"
        return (
            f"{name} is built for CUDA {cuda}{least}, and this driver supports CUDA up to "
            f"{supported}; update the driver ('nvidia-smi' shows its version), or install a build "
            f"for CUDA {driver_cuda // 1000} (https://pytorch.org/get-started/locally)"
        )
    build = "for ROCm" if version.get("hip") is not None else "without CUDA"
    return (
        f"{name} is built {build}; install a CUDA build (https://pytorch.org/get-started/locally)"
    )


_layer: DeviceLayer = NvidiaDevices()


def default_layer() -> DeviceLayer:
    """Return the hardware of this machine."""
    return _layer


@contextmanager
def hidden_from_this_process() -> Iterator[None]:
    """Hide all devices from the nodes of this process, unless CUDA is initialized already.

    Otherwise a library that uses any GPU it finds would keep memory on it until the end of the run.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        del os.environ[VISIBLE]
        if before is not None:
            os.environ[VISIBLE] = before
