import hashlib
import json
import os

import pytest
from kedro.io import DatasetError

from ja_instruct.datasets import QuantizedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelArtifact

PROVENANCE = {
    "stage": "quantization",
    "parameters": 12345,
    "source": {"model_id": "google/gemma-2-27b", "revision": "0123abc"},
}
CONFIG = {
    "model_type": "gemma2",
    "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


class Model:
    """Writes what a transformers model would, or dies while it does."""

    def __init__(self, shards, error=None):
        self.shards = shards
        self.error = error

    def save_pretrained(self, directory, *, max_shard_size):
        assert max_shard_size == "5GB"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(CONFIG), "utf-8")
        for name, content in self.shards.items():
            (directory / name).write_bytes(content)
        if self.error:
            raise self.error


class Tokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}", "utf-8")


def artifact(shards=None, error=None, provenance=PROVENANCE, card=""):
    shards = {"model.safetensors": b"weights"} if shards is None else shards
    return ModelArtifact(Model(shards, error), Tokenizer(), provenance, card)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def dataset(tmp_path):
    return QuantizedModelDataset(filepath=tmp_path / "models" / "quantized_model")


def test_round_trip(dataset, tmp_path):
    assert not dataset.exists()
    dataset.save(artifact())
    assert dataset.exists()
    directory = dataset.load()
    assert directory.path == (tmp_path / "models/quantized_model").resolve()
    assert directory.model_id == "google/gemma-2-27b"
    assert directory.revision == "0123abc"
    assert directory.load_config() == CONFIG
    assert dataset.parameter_count() == 12345


def test_handle_is_absolute_when_the_entry_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = QuantizedModelDataset(filepath="quantized_model")
    dataset.save(artifact())
    assert dataset.load().path == (tmp_path / "quantized_model").resolve()


def test_provenance_holds_what_was_saved_and_its_checksums(dataset):
    shards = {"model-00002.safetensors": b"two", "model-00001.safetensors": b"one"}
    dataset.save(artifact(shards))
    path = dataset.load().path / "ja_instruct.json"
    provenance = json.loads(path.read_text("utf-8"))
    others = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}"}
    assert provenance == {
        **PROVENANCE,
        "weights_sha256": {name: sha256(content) for name, content in shards.items()},
        "files": {
            name: {"sha256": sha256(content), "bytes": len(content)}
            for name, content in {**others, **shards}.items()
        },
    }
    assert dataset.load().provenance == provenance


def test_save_that_fails_leaves_nothing(dataset, tmp_path):
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save(artifact(error=OSError("disk full")))
    assert not dataset.exists()
    assert list((tmp_path / "models").iterdir()) == []


def test_save_that_fails_keeps_the_old_model(dataset, tmp_path):
    dataset.save(artifact())
    with pytest.raises(KeyboardInterrupt):
        dataset.save(artifact({"model.safetensors": b"other"}, KeyboardInterrupt()))
    directory = dataset.load().path
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    assert list((tmp_path / "models").iterdir()) == [directory]


def test_save_replaces_all_of_the_old_model(dataset):
    dataset.save(artifact({"model-00001.safetensors": b"1", "model-00002.safetensors": b"2"}))
    dataset.save(artifact())
    assert [path.name for path in dataset.load().path.glob("*.safetensors")] == [
        "model.safetensors"
    ]


def test_directory_without_provenance_is_refused_and_does_not_count_as_done(dataset):
    dataset.save(artifact())
    (dataset.load().path / "ja_instruct.json").unlink()
    assert not dataset.exists()
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=r"no ja_instruct\.json.*--pipeline=quantization"):
            read()


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", r"no config\.json"), ("model.safetensors", r"no \*\.safetensors weights")],
)
def test_incomplete_directory_is_refused(dataset, missing, message):
    dataset.save(artifact())
    (dataset.load().path / missing).unlink()
    with pytest.raises(InputError, match=f"{message}.*--pipeline=quantization"):
        dataset.load()


def test_missing_directory_names_the_pipeline_that_makes_it(dataset):
    with pytest.raises(InputError, match=r"no such model directory.*--pipeline=quantization"):
        dataset.load()


def test_configuration_is_there_once_the_model_is_complete(dataset):
    assert dataset.peek_config() is None
    dataset.save(artifact())
    assert dataset.peek_config() == CONFIG
    (dataset.load().path / "config.json").unlink()
    assert dataset.peek_config() is None


def refused(dataset, message):
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=f"{message}.*--pipeline=quantization"):
            read()


@pytest.mark.parametrize("stage", ["sft", "export", None])
def test_directory_of_another_stage_is_refused(dataset, stage):
    dataset.save(artifact(provenance={**PROVENANCE, "stage": stage}))
    refused(dataset, rf"says stage '{stage}', so .* not written by 'quantization'")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_changed_file_is_refused(dataset, name):
    dataset.save(artifact({"model.safetensors": b"ones", "model-2.safetensors": b"twos"}))
    path = dataset.load().path / name
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(dataset, f"{path}: SHA-256 {sha256(path.read_bytes())}, but .* was written")


def test_file_of_another_size_is_refused_without_hashing(dataset):
    dataset.save(artifact())
    path = dataset.load().path / "model.safetensors"
    path.write_bytes(b"weights and more")
    refused(dataset, f"{path}: 16 bytes, but 7 were written")


def test_missing_file_is_refused(dataset):
    dataset.save(artifact({"model-1.safetensors": b"1", "model-2.safetensors": b"2"}))
    path = dataset.load().path / "model-2.safetensors"
    path.unlink()
    refused(dataset, f"{path}: this file of the model is missing")


def test_weights_that_were_not_written_are_refused(dataset):
    dataset.save(artifact())
    path = dataset.load().path / "another.safetensors"
    path.write_bytes(b"would be loaded too")
    refused(dataset, f"{path}: these weights were not written with the model")


@pytest.mark.parametrize(
    "quantization",
    [None, {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}],
)
def test_configuration_that_is_not_nf4_is_refused(dataset, monkeypatch, quantization):
    monkeypatch.setitem(CONFIG, "quantization_config", quantization)
    dataset.save(artifact())
    refused(dataset, r"config\.json: quantization_config is not that of a 4-bit nf4 model")


def test_card_is_written_and_may_be_edited(dataset):
    dataset.save(artifact(card="# 名札\n"))
    path = dataset.load().path / "README.md"
    assert path.read_text("utf-8") == "# 名札\n"
    path.write_text("# 書き直した名札\n", "utf-8")
    dataset.check()


def test_no_card_where_there_is_nothing_to_say(dataset):
    dataset.save(artifact())
    assert not (dataset.load().path / "README.md").exists()
