import shutil
from types import SimpleNamespace

import pytest
import torch
from kedro.io import DatasetError
from safetensors.torch import save_file

from ja_instruct.datasets import MergedModelDataset
from ja_instruct.datasets import merged_model_dataset as module
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory


class Merge:
    """A description of a merge of one matrix; ``error`` is raised in the middle."""

    def __init__(self, base, error=None):
        self.base = base
        self.adapter = SimpleNamespace(load_tokenizer=lambda: self)
        self.provenance = {"stage": "export", "base": {"model_id": "owner/base"}}
        self.card = "# 統合したモデル\n"
        self.error = error

    def merged_matrices(self, shard):
        if self.error:
            raise self.error
        yield "b", torch.full((2, 2), 7, dtype=torch.bfloat16)

    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}", "utf-8")


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base"
    path.mkdir()
    weights = {name: torch.ones(2, 2, dtype=torch.bfloat16) for name in "abc"}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "gemma2"}', "utf-8")
    return ModelDirectory(path, "owner/base")


@pytest.fixture
def dataset(tmp_path):
    return MergedModelDataset(filepath=tmp_path / "models/merged_model")


def test_round_trip(dataset, base):
    from safetensors.torch import load_file

    assert not dataset.exists()
    dataset.save(Merge(base))
    assert dataset.exists()
    model = dataset.load()
    assert model.model_id == "owner/base"
    assert model.load_config() == {"model_type": "gemma2"}
    weights = load_file(model.path / "model.safetensors")
    assert {name: float(one.mean()) for name, one in weights.items()} == {"a": 1, "b": 7, "c": 1}
    assert (model.path / "README.md").read_text("utf-8") == "# 統合したモデル\n"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_save_that_fails_keeps_the_old(dataset, base, error, tmp_path):
    dataset.save(Merge(base))
    with pytest.raises((DatasetError, KeyboardInterrupt)):
        dataset.save(Merge(base, error))
    assert dataset.load().provenance["stage"] == "export"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["merged_model"]


def test_too_little_room_is_told_before(dataset, base, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    monkeypatch.setattr(module.shutil, "copyfile", lambda *paths: pytest.fail("copied"))
    with pytest.raises(InputError, match=r"GB of disk are needed for the merged model"):
        dataset.save(Merge(base))


def test_other_directories_are_refused(dataset, base, tmp_path):
    with pytest.raises(InputError, match=r"no such model directory; .*--pipeline=export"):
        dataset.load()
    shutil.copytree(base.path, tmp_path / "models/merged_model")
    with pytest.raises(InputError, match="does not say that 'export' wrote this"):
        dataset.load()


def test_changed_weights_are_refused(dataset, base):
    dataset.save(Merge(base))
    path = dataset.load().path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match="the file was changed"):
        dataset.load()
