import logging

import pynvml
import pytest
import torch

from ja_instruct.pipelines.sft.measuring import UtilizationMeter


def test_mean_since_the_last_reading(monkeypatch):
    readings = iter([80, 91, 30])
    monkeypatch.setattr(torch.cuda, "utilization", lambda: next(readings))
    meter = UtilizationMeter()
    assert meter.read() == {}
    meter.sample()
    meter.sample()
    assert meter.read() == {"gpu_utilization_percent": 85.5}
    assert meter.read() == {}
    meter.sample()
    assert meter.read() == {"gpu_utilization_percent": 30.0}


@pytest.mark.parametrize(
    "error",
    [
        pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
        RuntimeError("no driver"),
        ModuleNotFoundError("nvidia-ml-py does not seem to be installed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unsupported_driver_is_called_once(monkeypatch, caplog, error):
    asked = []

    def refuse():
        asked.append(1)
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    meter = UtilizationMeter()
    with caplog.at_level(logging.INFO):
        meter.sample()
        meter.sample()
    assert asked == [1]
    assert meter.read() == {}
    assert caplog.text.count("GPU utilization is not measured") == 1


def test_no_utilization_on_a_cpu(make_trainer):
    assert make_trainer().meter.utilization is None
