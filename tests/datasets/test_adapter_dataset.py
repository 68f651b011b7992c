import hashlib
import json

import pytest
from kedro.io import DatasetError

from ja_instruct.datasets import AdapterDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelArtifact

PROVENANCE = {"stage": "sft", "base": {"model_id": "google/gemma-2-27b"}}


class Model:
    def __init__(self, weights=b"lora", error=None):
        self.weights = weights
        self.error = error

    def save_pretrained(self, directory):
        directory.mkdir()
        (directory / "adapter_config.json").write_text("{}", "utf-8")
        (directory / "adapter_model.safetensors").write_bytes(self.weights)
        (directory / "README.md").write_text("a library's template", "utf-8")
        if self.error:
            raise self.error


class Tokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}", "utf-8")


def artifact(*args, card=""):
    return ModelArtifact(Model(*args), Tokenizer(), PROVENANCE, card)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


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
        "weights_sha256": {"adapter_model.safetensors": sha256(b"lora")},
        "files": {
            "adapter_config.json": {"sha256": sha256(b"{}"), "bytes": 2},
            "adapter_model.safetensors": {"sha256": sha256(b"lora"), "bytes": 4},
            "tokenizer.json": {"sha256": sha256(b"{}"), "bytes": 2},
        },
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


def test_card_takes_the_place_of_the_librarys(dataset):
    dataset.save(artifact(card="# ours"))
    assert (dataset.load().path / "README.md").read_text("utf-8") == "# ours"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_adapter_is_refused(dataset, name):
    dataset.save(artifact())
    path = dataset.load().path / name
    path.write_bytes(path.read_bytes()[::-1])
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=f"{path}: SHA-256 .* was written.*--pipeline=sft"):
            read()


def test_adapter_of_another_hand_is_taken_with_a_warning(dataset, caplog):
    dataset.save(artifact())
    (dataset.load().path / "ja_instruct.json").unlink()
    assert caplog.text == ""
    assert dataset.load().provenance == {}
    assert "nothing tells who trained this adapter" in caplog.text
