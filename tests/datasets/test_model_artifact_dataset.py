"""What ``QuantizedModelDataset``, ``AdapterDataset`` and ``MergedModelDataset`` share, and add."""

import hashlib
import json
import os
from dataclasses import dataclass, field

import pytest
from kedro.io import DatasetError

from ja_instruct.datasets import AdapterDataset, MergedModelDataset, QuantizedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelArtifact

SOURCE = {"model_id": "google/gemma-2-27b", "revision": "0123abc"}
NF4 = {
    "model_type": "gemma2",
    "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@dataclass(frozen=True)
class Kind:
    """A dataset with the files and the provenance of its stage."""

    dataset: type
    stage: str
    provenance: dict
    config_file: str = "config.json"
    config: dict = field(default_factory=dict)
    weights: str = "model.safetensors"
    arguments: dict = field(default_factory=dict)


KINDS = {
    "quantized": Kind(
        QuantizedModelDataset,
        "quantization",
        {"stage": "quantization", "parameters": 12345, "source": SOURCE},
        config=NF4,
        arguments={"max_shard_size": "5GB"},
    ),
    "adapter": Kind(
        AdapterDataset,
        "sft",
        {"stage": "sft", "base": SOURCE},
        config_file="adapter_config.json",
        weights="adapter_model.safetensors",
    ),
    "merged": Kind(MergedModelDataset, "export", {"stage": "export", "base": SOURCE}),
}


class Model:
    """Writes what a library would; ``error`` is raised afterwards."""

    def __init__(self, kind, shards, error):
        self.kind, self.shards, self.error = kind, shards, error
        self.peft_config = {}

    def save_pretrained(self, directory, **arguments):
        assert arguments == self.kind.arguments
        directory.mkdir()
        (directory / self.kind.config_file).write_text(json.dumps(self.kind.config), "utf-8")
        for name, content in self.shards.items():
            (directory / name).write_bytes(content)
        (directory / "README.md").write_text("a library's template", "utf-8")
        if self.error:
            raise self.error


class Tokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}", "utf-8")


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def quantized():
    return KINDS["quantized"]


@pytest.fixture
def make(tmp_path):
    """A function to a dataset of a kind, and one that saves a model to it."""

    def dataset_of(kind):
        dataset = kind.dataset(filepath=tmp_path / "models/model")

        def save(shards=None, error=None, card="", provenance=kind.provenance, kind=kind):
            shards = shards or {kind.weights: b"weights"}
            model = Model(kind, shards, error)
            dataset.save(ModelArtifact(model, Tokenizer(), provenance, card))
            return tmp_path / "models/model"

        return dataset, save

    return dataset_of


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def refused(dataset, message, stage):
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=f"{message}.*--pipeline={stage}"):
            read()


class TestAll:
    def test_round_trip(self, kind, make, tmp_path):
        dataset, save = make(kind)
        assert not dataset.exists()
        save()
        assert dataset.exists()
        directory = dataset.load()
        assert directory.path == (tmp_path / "models/model").resolve()
        assert (directory.path / "tokenizer.json").is_file()
        expected = ("model", None) if kind.stage == "sft" else tuple(SOURCE.values())
        assert (directory.model_id, directory.revision) == expected

    def test_handle_is_absolute_even_if_the_entry_is_not(self, kind, tmp_path, monkeypatch, make):
        make(kind)[1]()
        monkeypatch.chdir(tmp_path)
        dataset = kind.dataset(filepath="models/model")
        assert dataset.load().path == (tmp_path / "models/model").resolve()

    def test_provenance_lists_the_saved_files_with_their_checksums(self, kind, make):
        dataset, save = make(kind)
        shards = {kind.weights: b"one", "model-2.safetensors": b"two"}
        directory = save(shards)
        config = json.dumps(kind.config).encode()
        contents = {**shards, kind.config_file: config, "tokenizer.json": b"{}"}
        expected = {
            **kind.provenance,
            "weights_sha256": {name: sha256(content) for name, content in shards.items()},
            "files": {
                name: {"sha256": sha256(content), "bytes": len(content)}
                for name, content in contents.items()
            },
        }
        assert json.loads((directory / "ja_instruct.json").read_text("utf-8")) == expected
        assert dataset.load().provenance == expected

    def test_failed_save_leaves_nothing(self, kind, make, tmp_path):
        dataset, save = make(kind)
        with pytest.raises(DatasetError, match="disk full"):
            save(error=OSError("disk full"))
        assert not dataset.exists()
        assert list((tmp_path / "models").iterdir()) == []

    def test_failed_save_keeps_the_old_model(self, kind, make, tmp_path):
        dataset, save = make(kind)
        save()
        with pytest.raises(KeyboardInterrupt):
            save({kind.weights: b"other"}, KeyboardInterrupt())
        directory = dataset.load().path
        assert (directory / kind.weights).read_bytes() == b"weights"
        assert list((tmp_path / "models").iterdir()) == [directory]

    def test_save_replaces_the_whole_old_model(self, kind, make):
        _, save = make(kind)
        save({kind.weights: b"1", "model-00002.safetensors": b"2"})
        assert [path.name for path in save().glob("*.safetensors")] == [kind.weights]

    @pytest.mark.parametrize("name", [None, "tokenizer.json"])
    def test_changed_file_is_refused(self, kind, make, name):
        dataset, save = make(kind)
        path = save() / (name or kind.weights)
        before = path.stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        message = f"{path}: SHA-256 {sha256(path.read_bytes())}, but .* was written"
        refused(dataset, message, kind.stage)

    def test_file_of_another_size_is_refused(self, kind, make):
        dataset, save = make(kind)
        path = save() / kind.weights
        path.write_bytes(b"weights and more")
        refused(dataset, f"{path}: 16 bytes, but 7 were written", kind.stage)

    @pytest.mark.parametrize("name", ["model-2.safetensors", None, "config"])
    def test_missing_file_is_refused(self, kind, make, name):
        dataset, save = make(kind)
        directory = save({kind.weights: b"1", "model-2.safetensors": b"2"})
        name = {None: kind.weights, "config": kind.config_file}.get(name, name)
        (directory / name).unlink()
        refused(dataset, rf"{directory}.*(no {name}|{name}: .* missing)", kind.stage)

    def test_additional_weights_are_refused(self, kind, make):
        dataset, save = make(kind)
        path = save() / "another.safetensors"
        path.write_bytes(b"would be loaded too")
        message = f"{path}: these weights were not written with the model"
        refused(dataset, message, kind.stage)

    def test_missing_directory_names_the_pipeline_that_makes_it(self, kind, make):
        refused(make(kind)[0], "no (such model directory|adapter_config.json)", kind.stage)

    def test_card_replaces_the_librarys_and_may_be_edited(self, kind, make):
        dataset, save = make(kind)
        path = save(card="# 名札\n") / "README.md"
        assert path.read_text("utf-8") == "# 名札\n"
        path.write_text("# 書き直した名札\n", "utf-8")
        dataset.check()

    def test_empty_card_keeps_the_librarys(self, kind, make):
        assert (make(kind)[1]() / "README.md").read_text("utf-8") == "a library's template"


class TestStage:
    @pytest.fixture(params=["quantized", "merged"])
    def kind(self, request):
        return KINDS[request.param]

    def test_directory_without_provenance_is_refused_and_does_not_exist(self, kind, make):
        dataset, save = make(kind)
        (save() / "ja_instruct.json").unlink()
        assert not dataset.exists()
        refused(dataset, f"no ja_instruct.json, so .* not written by '{kind.stage}'", kind.stage)

    @pytest.mark.parametrize("stage", ["sft", None])
    def test_directory_of_another_stage_is_refused(self, kind, make, stage):
        dataset, save = make(kind)
        save(provenance={**kind.provenance, "stage": stage})
        message = f"says stage '{stage}', so .* not written by '{kind.stage}'"
        refused(dataset, message, kind.stage)

    def test_directory_without_weights_is_refused(self, kind, make):
        dataset, save = make(kind)
        (save() / kind.weights).unlink()
        refused(dataset, r"no \*\.safetensors weights", kind.stage)


class TestQuantized:
    def test_number_of_weights_is_the_recorded_one(self, quantized, make):
        dataset, save = make(quantized)
        save()
        assert dataset.parameter_count() == 12345

    def test_configuration_is_available_once_the_model_is_complete(self, quantized, make):
        dataset, save = make(quantized)
        assert dataset.peek_config() is None
        directory = save()
        assert dataset.peek_config() == dataset.load().load_config() == NF4
        (directory / "config.json").unlink()
        assert dataset.peek_config() is None

    @pytest.mark.parametrize(
        "quantization",
        [None, {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}],
    )
    def test_configuration_that_is_not_nf4_is_refused(self, quantized, make, quantization):
        dataset, save = make(quantized)
        config = {**NF4, "quantization_config": quantization}
        save(kind=Kind(**{**vars(quantized), "config": config}))
        message = r"config\.json: quantization_config is not that of a 4-bit nf4 model"
        refused(dataset, message, "quantization")


def test_adapter_of_unknown_origin_is_accepted_with_a_warning(make, caplog):
    dataset, save = make(KINDS["adapter"])
    (save() / "ja_instruct.json").unlink()
    assert caplog.text == ""
    assert dataset.load().provenance == {}
    assert "the origin of this adapter is unknown" in caplog.text
