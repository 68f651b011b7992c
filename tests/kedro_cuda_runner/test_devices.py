import importlib.util
import os
import re
import subprocess
import sys
import types
from unittest import mock

import pynvml
import pytest
from gpu_runs import why_not_loaded

from kedro_cuda_runner import devices
from kedro_cuda_runner.cuda_driver import DriverDevice, DriverError
from kedro_cuda_runner.devices import (
    Device,
    NoDevicesError,
    NvidiaDevices,
    default_layer,
    hidden_from_this_process,
)
from kedro_cuda_runner.errors import CudaRunnerError

UUIDS = ["00010203-0405-0607-0809-0a0b0c0d0e0f", "f0e0d0c0-b0a0-9080-7060-504030201000"]
FOUND = [
    DriverDevice(UUIDS[0], False, "NVIDIA H200", 150 * 10**9, 13000),
    DriverDevice(UUIDS[1], False, "NVIDIA L4", 24 * 10**9, 13000),
]
NONE = DriverError("cuInit", 100, "CUDA_ERROR_NO_DEVICE")


def driver(**answers):
    """Return a driver that answers, or fails, by CUDA_VISIBLE_DEVICES."""

    def query(environment):
        answer = answers[environment.get("CUDA_VISIBLE_DEVICES", "unset")]
        if isinstance(answer, DriverError):
            raise answer
        return answer

    return query


def output_of(code, **variables):
    """Return what another process prints."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def _nothing_hidden_and_any_torch(monkeypatch, request):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if request.cls is not TestTorch:
        monkeypatch.setattr(devices, "_torch_problem", lambda cuda: None)


def fake_nvml(uuids=("GPU-" + UUIDS[0], "GPU-" + UUIDS[1]), errors=None, **lists):
    """Return ``pynvml`` for devices and processes; ``errors`` are raised by function."""

    def handle_of(uuid):
        if uuid not in uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"handle of {uuid}"

    def processes(kind):
        return [
            types.SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in lists.get(kind, [])
        ]

    kinds = ("Compute", "MPSCompute", "Graphics")
    answers = {
        "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=100, free=70, used=30),
        "nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=83, memory=12),
        **{f"nvmlDeviceGet{kind}RunningProcesses": processes(kind) for kind in kinds},
    }
    nvml = mock.Mock(spec=pynvml)
    for name in vars(pynvml):
        if name.startswith("NVML"):
            setattr(nvml, name, getattr(pynvml, name))
    for function, answer in answers.items():
        getattr(nvml, function).return_value = answer
    nvml.nvmlDeviceGetHandleByUUID.side_effect = handle_of
    for function, code in (errors or {}).items():
        getattr(nvml, function).side_effect = pynvml.NVMLError(code)
    return nvml


def layer_with(nvml, query=None):
    return NvidiaDevices(query or driver(unset=FOUND), nvml)


def reason_without_devices(query):
    with pytest.raises(NoDevicesError) as caught:
        layer_with(fake_nvml(), query).find()
    return caught.value.message


DEVICE = Device(0, "GPU-" + UUIDS[0], "NVIDIA H200", 150 * 10**9)


class TestFind:
    def test_devices_as_cuda_counts_them(self):
        assert layer_with(fake_nvml()).find() == [
            DEVICE,
            Device(1, "GPU-" + UUIDS[1], "NVIDIA L4", 24 * 10**9),
        ]

    @pytest.mark.parametrize(
        ("is_mig", "has_nvml", "prefix"),
        [
            (False, True, "MIG-"),
            (True, True, "MIG-"),
            (False, False, "GPU-"),
            (True, False, "MIG-"),
        ],
    )
    def test_slice(self, is_mig, has_nvml, prefix):
        errors = {} if has_nvml else {"nvmlInit": 12}
        nvml = fake_nvml(uuids=("MIG-" + UUIDS[0],), errors=errors)
        query = driver(unset=[DriverDevice(UUIDS[0], is_mig, "H200 MIG 1g.18gb", 18, 13000)])
        assert layer_with(nvml, query).find()[0].uuid == prefix + UUIDS[0]

    def test_nvml_that_finds_neither_uuid(self):
        assert layer_with(fake_nvml(uuids=())).find()[0] == DEVICE

    def test_this_machine_s_real_layer(self):
        why = why_not_loaded("libcuda.so.1")
        with pytest.raises(NoDevicesError, match=re.escape(f"cannot be loaded ({why}; a")):
            NvidiaDevices().find()

    def test_driver_is_queried_once_for_the_same_variables(self, monkeypatch):
        seen = []

        def query(environment):
            seen.append(environment.get("CUDA_VISIBLE_DEVICES"))
            return FOUND

        layer = layer_with(fake_nvml(), query)
        assert layer.find() == layer.find()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        layer.find()
        assert seen == [None, "0,1"]

    @pytest.mark.parametrize(
        ("value", "without", "expected"),
        [
            ("", FOUND, "CUDA_VISIBLE_DEVICES='' hides all of the 2 there are; unset it"),
            ("-1", FOUND, "CUDA_VISIBLE_DEVICES='-1' hides all of the 2 there are; unset it"),
            ("0", NONE, "the NVIDIA driver finds none"),
        ],
    )
    def test_variable_that_may_hide_all(self, value, without, expected, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert expected in reason_without_devices(driver(**{value: NONE, "unset": without}))

    @pytest.mark.parametrize(
        ("answer", "reason", "remedy"),
        [
            (
                DriverError("", None, "libcuda.so.1: cannot open"),
                "libcuda.so.1, the NVIDIA driver's library, cannot be loaded (libcuda.so.1: ",
                "a container needs '--gpus all'",
            ),
            (NONE, "the NVIDIA driver finds none; ", "'nvidia-smi' should list a GPU"),
            ([], "the NVIDIA driver finds none; ", "'nvidia-smi' should list a GPU"),
            *(
                (DriverError("cuInit", code, "NAME"), f"cuInit failed: NAME ({code}); ", remedy)
                for code, remedy in [
                    (803, "reboot after an update"),
                    (804, "remove cuda-compat"),
                    (4711, "see whether 'nvidia-smi' works"),
                ]
            ),
            (
                DriverError("cuInit", None, "no answer in 120 seconds"),
                "cuInit failed: no answer in 120 seconds; ",
                "see whether 'nvidia-smi' works",
            ),
        ],
    )
    def test_no_device(self, answer, reason, remedy):
        message = reason_without_devices(driver(unset=answer))
        assert reason in message
        assert remedy in message


class TestTorch:
    @pytest.mark.parametrize(
        ("cuda", "hip", "problem"),
        [
            ("'13.0'", "None", None),
            ("None", "None", "the installed torch 2.11.0+x is built without CUDA; install"),
            ("None", "'6.4'", "the installed torch 2.11.0+x is built for ROCm; install"),
        ],
    )
    def test_build(self, tmp_path, monkeypatch, cuda, hip, problem):
        spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        assert devices._torch_problem(13000) is None, "there is no version.py"
        text = f"__version__ = '2.11.0+x'\ncuda: str | None = {cuda}\nhip = {hip}\n"
        (tmp_path / "version.py").write_text(text)
        found = devices._torch_problem(13000)
        assert found is None if problem is None else found.startswith(problem)

    @pytest.mark.parametrize(
        ("driver_cuda", "cuda", "problem"),
        [
            (13000, "13.0", None),
            # minor versions are compatible
            (13000, "13.2", None),
            (13020, "12.8", None),
            (
                12080,
                "13.0",
                r"torch 2\.13\.0 is built for CUDA 13\.0, which needs driver 580 or newer, and "
                r"this driver supports CUDA up to 12\.8; update .* or install a build for CUDA 12 ",
            ),
            (13010, "14.0", r"built for CUDA 14\.0, and this driver supports CUDA up to 13\.1"),
        ],
    )
    def test_driver_of_an_older_cuda(self, tmp_path, monkeypatch, driver_cuda, cuda, problem):
        spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda = '{cuda}'\n")
        found = devices._torch_problem(driver_cuda)
        assert found is None if problem is None else re.search(problem, found)

    def test_installed_build_counts_and_is_not_imported(self):
        import torch

        code = (
            "import sys\n"
            "from kedro_cuda_runner import devices\n"
            "print(devices._torch_problem(99000))\n"
            "assert 'torch' not in sys.modules\n"
        )
        version = torch.__version__
        problem = None if torch.version.cuda else f"the installed torch {version} is built "
        assert output_of(code).startswith(str(problem))

    def test_devices_that_the_installed_torch_cannot_use(self):
        import torch

        layer = NvidiaDevices(driver(unset=FOUND), fake_nvml())
        if torch.version.cuda:
            assert layer.find()[0] == DEVICE
        else:
            with pytest.raises(NoDevicesError, match="cannot be used: the installed torch"):
                layer.find()


class TestNvml:
    def test_memory(self):
        layer = layer_with(fake_nvml())
        assert layer.free_bytes(DEVICE) == 70
        assert layer.used_bytes(DEVICE) == 30

    def test_handle_is_requested_once_by_uuid(self):
        nvml = fake_nvml()
        layer = layer_with(nvml)
        layer.free_bytes(DEVICE)
        layer.free_bytes(DEVICE)
        nvml.nvmlDeviceGetHandleByUUID.assert_called_once_with(DEVICE.uuid)
        nvml.nvmlDeviceGetMemoryInfo.assert_called_with(f"handle of {DEVICE.uuid}")

    @pytest.mark.parametrize(
        "errors",
        [
            {"nvmlInit": 12},
            {"nvmlInit": 18},
            {"nvmlDeviceGetMemoryInfo": 3},
            {"nvmlDeviceGetHandleByUUID": 6},
        ],
    )
    def test_unknown_memory_counts_as_free(self, errors):
        layer = layer_with(fake_nvml(errors=errors))
        assert layer.free_bytes(DEVICE) == DEVICE.memory_bytes
        assert layer.used_bytes(DEVICE) is None

    def test_missing_nvml_is_logged_once(self, caplog):
        layer = layer_with(fake_nvml(errors={"nvmlInit": 12}))
        layer.free_bytes(DEVICE)
        layer.process_bytes(DEVICE, {1})
        assert [record.message for record in caplog.records] == [
            f"NVML cannot be used ({pynvml.NVMLError(12)}): all GPU memory counts as free"
        ]

    def test_the_real_module_without_the_library(self, caplog):
        why_not_loaded("libnvidia-ml.so.1")
        assert layer_with(None).free_bytes(DEVICE) == DEVICE.memory_bytes
        assert "NVML Shared Library Not Found" in caplog.text

    def test_lost_device_is_an_error(self):
        layer = layer_with(fake_nvml(errors={"nvmlDeviceGetMemoryInfo": 15}))
        expected = re.escape(f": {pynvml.NVMLError(15)} (NVML 15); check")
        with pytest.raises(CudaRunnerError, match=f"cuda:0 .*{expected}"):
            layer.free_bytes(DEVICE)
        with pytest.raises(CudaRunnerError):
            layer.used_bytes(DEVICE)

    def test_utilization(self):
        assert layer_with(fake_nvml()).utilization_percent(DEVICE) == 83
        nvml = fake_nvml(errors={"nvmlDeviceGetUtilizationRates": 3})
        assert layer_with(nvml).utilization_percent(DEVICE) is None

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            ({"Compute": [(1, 10), (2, 20), (3, 40)]}, 30),
            # computes and draws: listed twice with all it has
            ({"Compute": [(1, 10)], "Graphics": [(1, 10), (2, 5)]}, 15),
            ({"MPSCompute": [(2, 7)], "Compute": [(9, 100)]}, 7),
            # other numbers, or nothing allocated yet
            ({"Compute": [(3, 40)]}, None),
            ({}, None),
            # listed without its memory
            ({"Compute": [(1, None), (2, 20)]}, None),
            ({"Compute": [(1, 0)]}, None),
            # older drivers lack a list
            ({"Compute": [(1, 10)], "errors": {"nvmlDeviceGetMPSComputeRunningProcesses": 13}}, 10),
            ({"Compute": [(1, 10)], "errors": {"nvmlInit": 12}}, None),
        ],
    )
    def test_process_bytes(self, found, expected):
        assert layer_with(fake_nvml(**found)).process_bytes(DEVICE, {1, 2}) == expected


def test_environment_names_uuids_in_order():
    layer = layer_with(fake_nvml())
    devices = layer.find()
    assert layer.environment(devices[::-1]) == {
        "CUDA_VISIBLE_DEVICES": f"GPU-{UUIDS[1]},GPU-{UUIDS[0]}"
    }
    assert layer.environment([]) == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.gpu
class TestOnRealDevices:
    def test_as_torch_finds_them(self):
        import torch

        devices = default_layer().find()
        assert len(devices) == torch.cuda.device_count()
        for device in devices:
            properties = torch.cuda.get_device_properties(device.index)
            assert device.name == properties.name
            assert device.uuid[4:] == str(properties.uuid)
            assert device.memory_bytes == properties.total_memory

    def test_free_memory_is_what_torch_sees(self):
        import torch

        layer = default_layer()
        for device in layer.find():
            torch.zeros(1, device=f"cuda:{device.index}")
            free, _ = torch.cuda.mem_get_info(device.index)
            # others may come and go meanwhile
            assert layer.free_bytes(device) == pytest.approx(free, rel=0.02)

    def test_allocation_is_seen(self):
        import torch

        layer = default_layer()
        device = layer.find()[0]
        torch.zeros(1, device="cuda:0")
        used, own = layer.used_bytes(device), layer.process_bytes(device, [os.getpid()])
        held = torch.zeros(2**30, dtype=torch.uint8, device="cuda:0")
        assert layer.used_bytes(device) - used == pytest.approx(held.nbytes, rel=0.1)
        if own is None:
            pytest.skip("the used bytes are right, but NVML does not list processes here")
        now = layer.process_bytes(device, [os.getpid()])
        assert now - own == pytest.approx(held.nbytes, rel=0.1)

    def test_child_sees_the_given_ones_in_their_order(self):
        layer = default_layer()
        devices = layer.find()[::-1]
        code = (
            "from kedro_cuda_runner.devices import NvidiaDevices\n"
            "print([device.uuid for device in NvidiaDevices().find()])"
        )
        output = output_of(code, **layer.environment(devices))
        assert output == str([device.uuid for device in devices])

    def test_finding_leaves_this_process_without_cuda(self):
        code = (
            "import os, torch\n"
            "from kedro_cuda_runner.devices import default_layer\n"
            "layer = default_layer()\n"
            "device = layer.find()[0]\n"
            "assert layer.process_bytes(device, [os.getpid()]) is None\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    print(torch.zeros(1, device='cuda').item(), flush=True)\n"
            "    os._exit(0)\n"
            "assert os.waitpid(child, 0)[1] == 0\n"
        )
        assert output_of(code) == "0.0"


@pytest.mark.parametrize("before", [None, "1"])
def test_hidden_devices_come_back(before, monkeypatch):
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with pytest.raises(ValueError), hidden_from_this_process():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        raise ValueError
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
