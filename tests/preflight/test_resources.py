"""Free memory and disk for a model of 27 billion weights on a computer of a given size."""

import re
import shutil

import psutil
import pytest
from kedro.framework.project import configure_project
from kedro.io import DataCatalog, MemoryDataset

from ja_instruct.datasets import MergedModelDataset, ModelDirectoryDataset, QuantizedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.pipeline_registry import register_pipelines
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.preflight.resources import space_problems
from ja_instruct.preflight.run import check_run


@pytest.fixture
def check(tmp_path, read_parameters, monkeypatch, tiny_gemma2):
    configure_project("ja_instruct")
    section = QuantizationParameters(**read_parameters("test")["quantization"])

    class Model(ModelDirectoryDataset):
        pending = 0

        def parameter_count(self):
            return 27_000_000_000

        def peek_config(self):
            return None

        def pending_download_bytes(self):
            return self.pending

    def run(memory, disk, pending=0):
        monkeypatch.setattr(Model, "pending", pending)
        available = psutil.virtual_memory()._replace(available=memory)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
        usage = shutil.disk_usage(tmp_path)._replace(free=disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        catalog = DataCatalog(
            {
                "base_model": Model(filepath=tiny_gemma2.path),
                "quantized_model": QuantizedModelDataset(filepath=tmp_path / "deep/model"),
                "perplexity_texts": MemoryDataset([{"text": "本文"}]),
                "params:quantization": MemoryDataset(section),
            }
        )
        pipeline = register_pipelines()["quantization"]
        check_run(pipeline, catalog, only_missing_outputs=False)

    return run


def test_enough(check):
    check(memory=10**12, disk=10**12)


def test_too_little_memory(check):
    message = r"166\.0 GB of memory are needed .* 27\.00 billion .* 16\.0 GB are free.*smaller"
    with pytest.raises(InputError, match=message):
        check(memory=16 * 10**9, disk=10**12)


def test_too_little_disk(check, tmp_path):
    message = rf"40\.5 GB of disk .* at {tmp_path} \('quantize' 40\.5 GB\), 5\.0 GB are free"
    with pytest.raises(InputError, match=message):
        check(memory=10**12, disk=5 * 10**9)


def test_too_little_disk_for_the_download(check):
    message = r"110\.0 GB of disk .* download of base_model .* 90\.0 GB are free.*HF_HOME"
    with pytest.raises(InputError, match=message):
        check(memory=10**12, disk=90 * 10**9, pending=110 * 10**9)


def test_too_little_disk_for_the_merged_model(tiny_gemma2, tmp_path, monkeypatch):
    """It has the size of the base's files, whatever their type."""
    configure_project("ja_instruct")
    base_model = ModelDirectoryDataset(filepath=tiny_gemma2.path)
    monkeypatch.setattr(base_model, "weights_bytes", lambda: 109 * 10**9)
    usage = shutil.disk_usage(tmp_path)._replace(free=60 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    merged = MergedModelDataset(filepath=tmp_path / "deep/merged_model")
    catalog = DataCatalog({"base_model": base_model, "merged_model": merged})
    message = rf"109\.0 GB of disk .* at {tmp_path}/deep \(the merged model .* 60\.0 GB are free"
    (problem,) = space_problems({}, catalog, ["base_model"], {"merged_model"})
    assert re.search(message, problem)
    assert space_problems({}, catalog, ["base_model"], {"adapter"}) == []


def test_both_are_reported(check):
    with pytest.raises(InputError, match=r"(?s)of memory are needed.*of disk are needed"):
        check(memory=10**9, disk=10**9)
