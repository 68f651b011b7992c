"""The devices that the CUDA driver shows, asked in a process of its own.

``cuInit`` makes no context, so it takes no memory on a device, but it leaves a mark on the process:
CUDA fails in everything that is forked from it later, and the driver never looks at
``CUDA_VISIBLE_DEVICES`` again. So a short-lived process asks: this file itself, which therefore
imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LIBRARY = "libcuda.so.1"
# it takes a second or two a device where no daemon keeps the driver loaded
ANSWER_SECONDS = 120
NAME_BYTES = 256

NO_DEVICE = 100
# cuGetErrorName knows them all, except where it is what does not work
ERROR_NAMES = {
    34: "CUDA_ERROR_STUB_LIBRARY",
    NO_DEVICE: "CUDA_ERROR_NO_DEVICE",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    999: "CUDA_ERROR_UNKNOWN",
}


@dataclass(frozen=True)
class DriverDevice:
    """A device as the driver describes it.

    Attributes:
        uuid: Without ``GPU-`` or ``MIG-``.
        is_mig: Whether it is a slice of a GPU, as far as the driver tells.
        name: The product's.
        memory_bytes: All it has.
    """

    uuid: str
    is_mig: bool
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class DriverError:
    """A function of the driver that failed.

    Attributes:
        function: Its name; empty where there is no library to call.
        code: What it returned; None where it did not return.
        name: The code's name, or what went wrong in words.
    """

    function: str
    code: int | None
    name: str


@dataclass(frozen=True)
class DriverAnswer:
    """The visible devices in the order in which CUDA counts them, or why there are none."""

    devices: tuple[DriverDevice, ...] = field(default=())
    error: DriverError | None = None


def ask_driver(environment: Mapping[str, str]) -> DriverAnswer:
    """Return what a process with this environment sees of CUDA."""
    try:
        process = subprocess.run(  # noqa: S603 - this file
            [sys.executable, "-I", "-S", __file__],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed("cuInit", None, f"no answer in {ANSWER_SECONDS} seconds")
    if process.returncode != 0:
        last_line = process.stderr.strip().rpartition("\n")[2]
        return _failed("cuInit", None, f"ended with {process.returncode}: {last_line}")
    answer = json.loads(process.stdout)
    error = answer["error"]
    return DriverAnswer(
        tuple(DriverDevice(**device) for device in answer["devices"]),
        error and DriverError(**error),
    )


def read_devices(library: Any) -> DriverAnswer:
    """Ask ``libcuda.so.1`` in this process.

    Args:
        library: It, loaded by ctypes, or what has the same functions.
    """
    try:
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        return DriverAnswer(tuple(_read_device(library, index) for index in range(count.value)))
    except _CallError as error:
        return _failed(error.function, error.code, _error_name(library, error.code))


class _CallError(Exception):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(function, code)
        self.function = function
        self.code = code


def _call(library: Any, function: str, *args: Any) -> None:
    code = getattr(library, function)(*args)
    if code != 0:
        raise _CallError(function, code)


def _failed(function: str, code: int | None, name: str) -> DriverAnswer:
    return DriverAnswer(error=DriverError(function, code, name))


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(name)) == 0 and name.value:
        return name.value.decode()
    return ERROR_NAMES.get(code, "unknown error")


def _read_device(library: Any, index: int) -> DriverDevice:
    device = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(library, "cuDeviceGetName", name, NAME_BYTES, device)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    whole = _read_uuid(library, "cuDeviceGetUuid", device)
    # drivers before CUDA 11.4 lack it; of a MIG slice it gives the slice's own UUID, where the
    # older one gives the GPU's
    newer = hasattr(library, "cuDeviceGetUuid_v2")
    own = _read_uuid(library, "cuDeviceGetUuid_v2", device) if newer else whole
    return DriverDevice(own, own != whole, name.value.decode(errors="replace"), memory.value)


def _read_uuid(library: Any, function: str, device: ctypes.c_int) -> str:
    value = (ctypes.c_ubyte * 16)()
    _call(library, function, ctypes.byref(value), device)
    digits = bytes(value).hex()
    return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def main() -> None:
    """Write the answer to the standard output as JSON."""
    try:
        answer = read_devices(ctypes.CDLL(LIBRARY))
    except OSError as error:
        answer = _failed("", None, str(error))
    json.dump(asdict(answer), sys.stdout)


if __name__ == "__main__":
    main()
