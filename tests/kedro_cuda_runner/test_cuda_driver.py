import os
import shutil
import subprocess

import pytest
from gpu_runs import why_not_loaded

from kedro_cuda_runner import cuda_driver
from kedro_cuda_runner.cuda_driver import DriverDevice, DriverError, query_driver

UUIDS = ["00010203-0405-0607-0809-0a0b0c0d0e0f", "f0e0d0c0-b0a0-9080-7060-504030201000"]
# libcuda.so.1 for two devices, of which newer drivers report that one is a slice; FAILING names the
# function that fails with CODE
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int failing(const char *function) {
    const char *name = getenv("FAILING");
    return name && !strcmp(name, function) ? atoi(getenv("CODE")) : 0;
}
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (getenv("CRASH")) abort();
    if (flags) return 1;
    return visible && !*visible ? 100 : failing("cuInit");
}
int cuDeviceGetCount(int *count) { *count = 2; return failing("cuDeviceGetCount"); }
int cuDriverGetVersion(int *version) { *version = 12080; return failing("cuDriverGetVersion"); }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return failing("cuDeviceGet"); }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Fake %d", device - 10); return failing("cuDeviceGetName");
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (1L << 37) + device - 10; return failing("cuDeviceTotalMem_v2");
}
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i;
    return failing("cuDeviceGetUuid");
}
#ifndef OLDER
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = device == 11 ? 0xf0 - 0x10 * i : i;
    return failing("cuDeviceGetUuid_v2");
}
#endif
int cuGetErrorName(int code, const char **name) {
    if (getenv("KNOWS_NO_NAMES")) return 1;
    *name = "CUDA_ERROR_OF_THE_FAKE"; return 0;
}
"""
FUNCTIONS = ["cuInit", "cuDeviceGetCount", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName"]
FUNCTIONS += ["cuDeviceTotalMem_v2", "cuDeviceGetUuid", "cuDeviceGetUuid_v2"]


@pytest.fixture(scope="module")
def compile_library(tmp_path_factory):
    """Return a function that compiles the library and returns an environment with it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")

    def compile_library(*options):
        folder = tmp_path_factory.mktemp("libcuda")
        (folder / "cuda.c").write_text(SOURCE)
        output = ["-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "cuda.c")]
        subprocess.run([compiler, *options, *output], check=True)
        rest = {name: one for name, one in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return {**rest, "LD_LIBRARY_PATH": str(folder)}

    return compile_library


@pytest.fixture(scope="module")
def environment(compile_library):
    return compile_library()


def error_of(environment, **variables):
    with pytest.raises(DriverError) as caught:
        query_driver({**environment, **variables})
    return caught.value.args


def test_newer_driver_reports_slices(environment):
    assert query_driver(environment) == [
        DriverDevice(UUIDS[0], False, "Fake 0", 2**37, 12080),
        DriverDevice(UUIDS[1], True, "Fake 1", 2**37 + 1, 12080),
    ]


def test_older_driver(compile_library):
    assert query_driver(compile_library("-DOLDER")) == [
        DriverDevice(UUIDS[0], False, f"Fake {i}", 2**37 + i, 12080) for i in range(2)
    ]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_failure_is_reported(environment, function):
    error = error_of(environment, FAILING=function, CODE="803")
    assert error == (function, 803, "CUDA_ERROR_OF_THE_FAKE")


@pytest.mark.parametrize(
    ("code", "name"), [(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), (4711, "unknown error")]
)
def test_library_that_does_not_know_its_errors(environment, code, name):
    error = error_of(environment, FAILING="cuInit", CODE=str(code), KNOWS_NO_NAMES="1")
    assert error == ("cuInit", code, name)


def test_uses_the_given_environment(environment):
    error = error_of(environment, CUDA_VISIBLE_DEVICES="")
    assert error == ("cuInit", 100, "CUDA_ERROR_OF_THE_FAKE")


def test_driver_that_crashes(environment):
    function, code, name = error_of(environment, CRASH="1")
    assert (function, code) == ("cuInit", None)
    assert name.startswith("ended with -6")


def test_driver_that_hangs(environment, monkeypatch):
    monkeypatch.setattr(cuda_driver, "TIMEOUT_SECONDS", 0.001)
    assert error_of(environment) == ("cuInit", None, "no answer in 0.001 seconds")


def test_missing_library():
    expected = why_not_loaded("libcuda.so.1")
    assert error_of(os.environ) == ("", None, expected)
