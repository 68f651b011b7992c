import hashlib
import json

import pytest
from kedro.io import DatasetError

from ja_instruct.datasets import AdapterDataset
from ja_instruct.errors import InputError
from ja_instruct.models import ModelArtifact

PROVENANCE = {"stage": "sft", "base": {"model_id": "google/gemma-2-27b"}}


class Model:
    def __init__(self, weights=b"lora", error=None):
        self.weights = weights
        self.error = error

    def save_pretrained(self, directory):
        directory.mkdir()
        (directory / "adapter_config.json").write_text("{}", "utf-8")
        (directory / "adapter_model.safetensors").write_bytes(self.weights)
        if self.error:
            raise self.error


class Tokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}", "utf-8")


def artifact(*args):
    return ModelArtifact(Model(*args), Tokenizer(), PROVENANCE)


@pytest.fixture
def dataset(tmp_path):
    return AdapterDataset(filepath=tmp_path / "models" / "adapter")


def test_round_trip_with_checksums(dataset, tmp_path):
    assert not dataset.exists()
    dataset.save(artifact())
    assert dataset.exists()
    directory = dataset.load()
    assert directory.path == (tmp_path / "models/adapter").resolve()
    assert (directory.path / "tokenizer.json").is_file()
    assert directory.provenance == {
        **PROVENANCE,
        "weights_sha256": {"adapter_model.safetensors": hashlib.sha256(b"lora").hexdigest()},
    }
    written = json.loads((directory.path / "ja_instruct.json").read_text("utf-8"))
    assert written == directory.provenance


def test_save_that_fails_leaves_nothing(dataset, tmp_path):
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save(artifact(b"half", OSError("disk full")))
    assert not dataset.exists()
    assert list((tmp_path / "models").iterdir()) == []


def test_save_that_fails_keeps_the_old_adapter(dataset, tmp_path):
    dataset.save(artifact())
    with pytest.raises(KeyboardInterrupt):
        dataset.save(artifact(b"other", KeyboardInterrupt()))
    directory = dataset.load().path
    assert (directory / "adapter_model.safetensors").read_bytes() == b"lora"
    assert list((tmp_path / "models").iterdir()) == [directory]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_incomplete_adapter_names_the_pipeline_that_makes_it(dataset, missing):
    dataset.save(artifact())
    (dataset.load().path / missing).unlink()
    with pytest.raises(InputError, match=rf"no {missing}; .*--pipeline=sft"):
        dataset.load()
