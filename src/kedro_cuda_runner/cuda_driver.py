"""The devices that the CUDA driver shows to a process with a given environment.

NVML cannot answer this: it ignores ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``, its order is
not CUDA's, and it works where CUDA does not initialize. So ``cuInit`` is called, in a subprocess:
it allocates nothing on a device, but afterwards CUDA fails in forked children and the driver no
longer reads ``CUDA_VISIBLE_DEVICES``. The subprocess runs this file, which therefore imports only
the standard library.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

LIBRARY = "libcuda.so.1"
# a second or two for each device if no daemon keeps the driver loaded
TIMEOUT_SECONDS = 120
NAME_BYTES = 256

NO_DEVICE = 100
# for drivers whose cuGetErrorName fails too
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
        uuid: Without the prefix ``GPU-`` or ``MIG-``.
        is_mig: Whether it is a MIG slice; drivers before CUDA 11.4 do not report this.
        name: The product name.
        memory_bytes: Total memory.
        cuda_version: The newest version of CUDA that the driver supports: 13000 for 13.0.
    """

    uuid: str
    is_mig: bool
    name: str
    memory_bytes: int
    cuda_version: int


@dataclass(eq=False)
class DriverError(Exception):
    """A call of the driver failed.

    Attributes:
        function: Name of the function; empty if the library cannot be loaded.
        code: Its return value; None if it did not return.
        name: Name of the code, or a description.
    """

    function: str
    code: int | None
    name: str


def query_driver(environment: Mapping[str, str]) -> list[DriverDevice]:
    """Return the devices that a process with this environment sees, in CUDA's order.

    Raises:
        DriverError: The driver cannot be used or finds no device.
    """
    try:
        process = subprocess.run(  # noqa: S603 - this file
            [sys.executable, "-I", "-S", __file__],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DriverError("cuInit", None, f"no answer in {TIMEOUT_SECONDS} seconds") from error
    if process.returncode != 0:
        last_line = process.stderr.strip().rpartition("\n")[2]
        raise DriverError("cuInit", None, f"ended with {process.returncode}: {last_line}")
    answer = json.loads(process.stdout)
    if "error" in answer:
        raise DriverError(*answer["error"])
    return [DriverDevice(**device) for device in answer["devices"]]


def read_devices(library: Any) -> list[DriverDevice]:
    """Query the driver in this process; ``library`` is ``libcuda.so.1`` as ctypes loads it.

    Raises:
        DriverError: A call failed.
    """
    _call(library, "cuInit", 0)
    count, version = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    return [_read_device(library, index, version.value) for index in range(count.value)]


def _call(library: Any, function: str, *args: Any) -> None:
    code = getattr(library, function)(*args)
    if code != 0:
        name = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(name))
        known = ERROR_NAMES.get(code, "unknown error")
        raise DriverError(function, code, name.value.decode() if name.value else known)


def _read_device(library: Any, index: int, cuda_version: int) -> DriverDevice:
    device = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(library, "cuDeviceGetName", name, NAME_BYTES, device)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    gpu_uuid = _read_uuid(library, "cuDeviceGetUuid", device)
    # drivers before CUDA 11.4 lack it; it returns a MIG slice's own UUID
    newer = hasattr(library, "cuDeviceGetUuid_v2")
    uuid = _read_uuid(library, "cuDeviceGetUuid_v2", device) if newer else gpu_uuid
    text = name.value.decode(errors="replace")
    return DriverDevice(uuid, uuid != gpu_uuid, text, memory.value, cuda_version)


def _read_uuid(library: Any, function: str, device: ctypes.c_int) -> str:
    value = (ctypes.c_ubyte * 16)()
    _call(library, function, ctypes.byref(value), device)
    return str(UUID(bytes=bytes(value)))


def main() -> None:
    """Write the answer to the standard output as JSON."""
    answer: dict[str, Any]
    try:
        answer = {"devices": [asdict(one) for one in read_devices(ctypes.CDLL(LIBRARY))]}
    except OSError as error:
        answer = {"error": ("", None, str(error))}
    except DriverError as error:
        answer = {"error": error.args}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
