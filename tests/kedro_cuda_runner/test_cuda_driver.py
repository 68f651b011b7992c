import os
import shutil
import subprocess

import pytest
from missing_libraries import why_not_loaded

from kedro_cuda_runner import cuda_driver
from kedro_cuda_runner.cuda_driver import DriverDevice, DriverError, query_driver, read_devices

UUIDS = ["00010203-0405-0607-0809-0a0b0c0d0e0f", "f0e0d0c0-b0a0-9080-7060-504030201000"]


class FakeLibrary:
    """``libcuda.so.1`` for two devices, of which newer drivers report that one is a slice."""

    def __init__(self, code=0, failing="cuInit", *, knows_names=True, is_newer=True):
        self.code = code
        self.failing = failing
        self.knows_names = knows_names
        self.is_newer = is_newer

    def __getattr__(self, function):
        if function == "cuDeviceGetUuid_v2" and not self.is_newer:
            raise AttributeError(function)

        def call(*args):
            self.write(function, *args)
            if function == "cuGetErrorName":
                return 0 if self.knows_names else 1
            return self.code if function == self.failing else 0

        return call

    def write(self, function, *args):
        match function, args:
            case "cuInit", (flags,):
                assert flags == 0
            case "cuDeviceGetCount", (count,):
                count._obj.value = 2
            case "cuDeviceGet", (device, index):
                device._obj.value = 10 + index
            case "cuDeviceGetName", (name, size, device):
                name.value = f"Fake {device.value - 10}"[: size - 1].encode()
            case "cuDeviceTotalMem_v2", (memory, device):
                memory._obj.value = 2**37 + device.value - 10
            case "cuDeviceGetUuid_v2", (uuid, device) if device.value == 11:
                uuid._obj[:] = bytes(range(0xF0, -1, -0x10))
            case "cuDeviceGetUuid" | "cuDeviceGetUuid_v2", (uuid, _):
                uuid._obj[:] = bytes(range(16))
            case "cuGetErrorName", (_, name) if self.knows_names:
                name._obj.value = b"CUDA_ERROR_OF_THE_FAKE"


def error_of(function, *args):
    with pytest.raises(DriverError) as caught:
        function(*args)
    return caught.value.args


class TestReadDevices:
    def test_older_driver(self):
        assert read_devices(FakeLibrary(is_newer=False)) == [
            DriverDevice(UUIDS[0], False, f"Fake {i}", 2**37 + i) for i in range(2)
        ]

    def test_newer_driver_reports_slices(self):
        devices = read_devices(FakeLibrary())
        assert [(one.uuid, one.is_mig) for one in devices] == [(UUIDS[0], False), (UUIDS[1], True)]

    @pytest.mark.parametrize(
        "function",
        [
            "cuInit",
            "cuDeviceGetCount",
            "cuDeviceGet",
            "cuDeviceGetName",
            "cuDeviceTotalMem_v2",
            "cuDeviceGetUuid",
            "cuDeviceGetUuid_v2",
        ],
    )
    def test_every_failure_is_reported(self, function):
        library = FakeLibrary(code=803, failing=function)
        assert error_of(read_devices, library) == (function, 803, "CUDA_ERROR_OF_THE_FAKE")

    @pytest.mark.parametrize(
        ("code", "name"), [(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), (4711, "unknown error")]
    )
    def test_library_that_does_not_know_its_errors(self, code, name):
        library = FakeLibrary(code=code, knows_names=False)
        assert error_of(read_devices, library) == ("cuInit", code, name)


COMPILED = r"""
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    const char *fault = getenv("FAKE_CUINIT");
    if (fault) { if (!strcmp(fault, "crash")) abort(); return atoi(fault); }
    return visible && !*visible ? 100 : 0;
}
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Compiled", length); return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 0x2300000000; return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i;
    return 0;
}
int cuDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_COMPILED"; return 0; }
"""


@pytest.fixture(scope="module")
def compiled_environment(tmp_path_factory):
    """Return an environment whose ``libcuda.so.1`` is a compiled fake."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "cuda.c").write_text(COMPILED)
    library = ["-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "cuda.c")]
    subprocess.run([compiler, *library], check=True)
    rest = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**rest, "LD_LIBRARY_PATH": str(folder)}


class TestQueryDriver:
    def test_compiled_library(self, compiled_environment):
        device = DriverDevice(UUIDS[0], False, "Compiled", 0x2300000000)
        assert query_driver(compiled_environment) == [device]

    def test_uses_the_given_environment(self, compiled_environment):
        environment = {**compiled_environment, "CUDA_VISIBLE_DEVICES": ""}
        assert error_of(query_driver, environment) == ("cuInit", 100, "CUDA_ERROR_COMPILED")

    def test_driver_that_crashes(self, compiled_environment):
        environment = {**compiled_environment, "FAKE_CUINIT": "crash"}
        function, code, name = error_of(query_driver, environment)
        assert (function, code) == ("cuInit", None)
        assert name.startswith("ended with -6")

    def test_driver_that_hangs(self, compiled_environment, monkeypatch):
        monkeypatch.setattr(cuda_driver, "TIMEOUT_SECONDS", 0.001)
        error = error_of(query_driver, compiled_environment)
        assert error == ("cuInit", None, "no answer in 0.001 seconds")

    def test_missing_library(self):
        expected = why_not_loaded("libcuda.so.1")
        assert error_of(query_driver, os.environ) == ("", None, expected)
