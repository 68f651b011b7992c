"""The one boundary to the hardware: which devices there are and what they are doing."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import runpy
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kedro_cuda_runner.cuda_driver import LIBRARY, NO_DEVICE, DriverDevice, DriverError, ask_driver
from kedro_cuda_runner.errors import CudaRunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from kedro_cuda_runner.cuda_driver import DriverAnswer

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


class NoDevicesError(CudaRunnerError):
    """There is no CUDA device to run on; the message says why."""


@dataclass(frozen=True)
class Device:
    """A CUDA device that this process may use.

    Attributes:
        index: As CUDA counts the visible devices: ``cuda:0`` is 0.
        uuid: ``GPU-…``, or ``MIG-…`` for a slice of one.
        name: The product's.
        memory_bytes: All it has.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int


class DeviceLayer(Protocol):
    """What the runner asks of the hardware."""

    def find(self) -> list[Device]:
        """Return the visible devices, at least one, in CUDA's order.

        Raises:
            NoDevicesError: There are none, or they cannot be used.
        """

    def free_bytes(self, device: Device) -> int:
        """Return the memory that nobody has allocated.

        Raises:
            CudaRunnerError: The device does not answer.
        """

    def used_bytes(self, device: Device) -> int | None:
        """Return the memory that is allocated, by whomever; None where nobody can tell.

        Raises:
            CudaRunnerError: The device does not answer.
        """

    def utilization_percent(self, device: Device) -> int | None:
        """Return the part of the last moment in which a kernel ran; None where nobody can tell."""

    def process_bytes(self, device: Device, pids: Collection[int]) -> int | None:
        """Return what these processes have allocated together; None where nobody can tell."""

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Return the variables that show a child exactly these devices, in this order."""


class NvidiaDevices:
    """The real devices: found through the CUDA driver, watched through NVML.

    The driver is asked for the devices because it alone applies ``CUDA_VISIBLE_DEVICES`` and
    ``CUDA_DEVICE_ORDER``, which NVML ignores. Where NVML is missing or does not answer for a device
    (Jetson, some virtual GPUs), the device's whole memory counts as free, and nothing is known of
    what is used.

    Args:
        ask: What a process with a given environment sees of CUDA.
        nvml: The module ``pynvml``, or what has the same functions; None to import it.
        is_torch_used: Whether a PyTorch that cannot use CUDA is a reason to refuse.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, str]], DriverAnswer] = ask_driver,
        nvml: Any = None,
        *,
        is_torch_used: bool = True,
    ) -> None:
        self._ask = ask
        self._given_nvml = nvml
        self._is_torch_used = is_torch_used
        self._handles: dict[str, Any] = {}
        self._found: dict[tuple[str | None, ...], list[Device]] = {}

    def find(self) -> list[Device]:
        """Return the visible devices, in CUDA's order; takes no memory on them.

        Raises:
            NoDevicesError: No driver, none that works, no device, all hidden, or a PyTorch without
                CUDA.
        """
        asked = tuple(os.environ.get(name) for name in (VISIBLE, ORDER))
        if asked in self._found:  # asking takes up to a second, and a run asks several times
            return self._found[asked]
        answer = self._ask(os.environ)
        if not answer.devices:
            raise NoDevicesError(f"there is no CUDA device: {self._why_none(answer.error)}")
        if self._is_torch_used and (lack := _lack_of_torch()):
            raise NoDevicesError(f"the CUDA devices cannot be used: {lack}")
        self._found[asked] = [
            Device(index, self._full_uuid(found), found.name, found.memory_bytes)
            for index, found in enumerate(answer.devices)
        ]
        return self._found[asked]

    def _why_none(self, error: DriverError | None) -> str:
        if error is not None and not error.function:
            return (
                f"{LIBRARY}, the NVIDIA driver's library, cannot be loaded ({error.name}; a "
                f"container needs '--gpus all')"
            )
        if VISIBLE in os.environ:
            rest = {name: value for name, value in os.environ.items() if name != VISIBLE}
            if hidden := len(self._ask(rest).devices):
                value = os.environ[VISIBLE]
                return (
                    f"{VISIBLE}={value!r} hides all of the {hidden} there are; unset it, or name "
                    f"devices that 'nvidia-smi -L' lists"
                )
        if error is None or error.code == NO_DEVICE:
            return f"the NVIDIA driver finds none; {REMEDIES[NO_DEVICE]}"
        code = "" if error.code is None else f" ({error.code})"
        remedy = REMEDIES.get(error.code or 0, "see whether 'nvidia-smi' works")
        return f"the NVIDIA driver's {error.function} failed: {error.name}{code}; {remedy}"

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
        """The module ``pynvml``, ready for use; None where it cannot be."""
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

    def _ask_nvml(self, device: Device, function: str) -> Any:
        """Return what a function of NVML says of a device; None where it cannot say."""
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle(device.uuid))
        except self._nvml.NVMLError:
            return None

    def _memory(self, device: Device) -> Any:
        if self._nvml is None:
            return None
        try:
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle(device.uuid))
        except self._nvml.NVMLError as error:
            unknown = (
                self._nvml.NVML_ERROR_NOT_SUPPORTED,
                self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                self._nvml.NVML_ERROR_NO_PERMISSION,
                self._nvml.NVML_ERROR_NOT_FOUND,
            )
            if error.value in unknown:
                return None
            raise CudaRunnerError(
                f"cuda:{device.index} ({device.name}, {device.uuid}) does not tell its free "
                f"memory: {error} (NVML {error.value}); see what 'nvidia-smi' and 'dmesg' say of it"
            ) from error

    def free_bytes(self, device: Device) -> int:
        """Return the memory that nobody has allocated; all of it where NVML cannot tell.

        Raises:
            CudaRunnerError: The device does not answer: it is lost, or needs a reset.
        """
        memory = self._memory(device)
        return device.memory_bytes if memory is None else int(memory.free)

    def used_bytes(self, device: Device) -> int | None:
        """Return the memory that is allocated, the driver's own part of it included.

        Raises:
            CudaRunnerError: As for ``free_bytes``.
        """
        memory = self._memory(device)
        return None if memory is None else int(memory.used)

    def utilization_percent(self, device: Device) -> int | None:
        """Return NVML's utilization; None for a slice of a GPU."""
        rates = self._ask_nvml(device, "nvmlDeviceGetUtilizationRates")
        return None if rates is None else int(rates.gpu)

    def process_bytes(self, device: Device, pids: Collection[int]) -> int | None:
        """Return what NVML lists of these processes.

        None where it lists none of them: then they have nothing on the device, or NVML counts
        processes by other numbers, as it does in a container on older drivers. None also where it
        lists one without its memory, as newer drivers do in a container.
        """
        by_pid: dict[int, int] = {}
        # a process that computes and draws is on two of the lists, each time with all it has
        for kind in ("Compute", "MPSCompute", "Graphics"):
            for process in self._ask_nvml(device, f"nvmlDeviceGet{kind}RunningProcesses") or ():
                if process.pid in pids:
                    if not process.usedGpuMemory:
                        return None
                    by_pid[process.pid] = max(by_pid.get(process.pid, 0), process.usedGpuMemory)
        return sum(by_pid.values()) if by_pid else None

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        """Return ``CUDA_VISIBLE_DEVICES`` by UUID, which ``CUDA_DEVICE_ORDER`` does not change."""
        return {VISIBLE: ",".join(device.uuid for device in devices)}


def _lack_of_torch() -> str | None:
    """Return why PyTorch, if installed, cannot use CUDA; it is not imported, which takes long."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return lack_of_torch_build(Path(spec.origin).with_name("version.py"))


def lack_of_torch_build(version_file: Path) -> str | None:
    """Return why the PyTorch whose ``torch/version.py`` this is cannot use CUDA, or None."""
    if not version_file.is_file():
        return None
    version = runpy.run_path(str(version_file))
    if version.get("cuda") is not None:
        return None
    build = "for ROCm" if version.get("hip") is not None else "without CUDA"
    return (
        f"the installed torch {version.get('__version__', '')} is built {build}; install a CUDA "
        f"build (https://pytorch.org/get-started/locally)"
    )


_layer: DeviceLayer = NvidiaDevices()


def default_layer() -> DeviceLayer:
    """Return the layer that the runner uses."""
    return _layer


def use_layer(layer: DeviceLayer) -> DeviceLayer:
    """Make the runner use another layer, as tests do; return the one it used before."""
    global _layer
    before, _layer = _layer, layer
    return before


@contextmanager
def hidden_from_this_process() -> Iterator[None]:
    """Let the nodes of this process find no device, unless they have used one already.

    A library that takes a GPU because there is one would keep a part of its memory until the end
    of the run, beside the nodes that were given it. Processes that are started meanwhile get the
    variable that is meant for them.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
