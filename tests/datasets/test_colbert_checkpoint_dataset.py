import pytest
from tiny_colbert import make_tiny_colbert

from ja_instruct.datasets.colbert_checkpoint_dataset import ColbertCheckpointDataset
from ja_instruct.errors import InputError
from ja_instruct.retrieval.colbert_checkpoint import hash_weights


def test_directory(tmp_path):
    dataset = ColbertCheckpointDataset(filepath=tmp_path / "tiny")
    assert not dataset.exists()
    make_tiny_colbert(tmp_path / "tiny", ["日本"])
    assert dataset.exists()
    dataset.check()
    checkpoint = dataset.load()
    assert checkpoint.directory == tmp_path / "tiny"
    assert checkpoint.sha256 == hash_weights(tmp_path / "tiny")
    assert len(checkpoint.sha256) == 64


def test_missing_directory(tmp_path):
    dataset = ColbertCheckpointDataset(filepath=tmp_path / "none")
    with pytest.raises(InputError, match="is not a ColBERT checkpoint"):
        _ = dataset.load().directory
    with pytest.raises(InputError, match="is not a ColBERT checkpoint"):
        dataset.check()


def test_unreachable_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    dataset = ColbertCheckpointDataset(repo_id="bclavie/JaColBERTv2-not-cached", revision="main")
    assert not dataset.exists()
    with pytest.raises(InputError, match="--env=demo"):
        _ = dataset.load().sha256
    with pytest.raises(InputError, match="--env=demo"):
        dataset.check()


def test_missing_checkpoint_can_be_loaded_as_a_handle(tmp_path):
    """BM25 uses no checkpoint, so a missing one must not fail before its directory is used."""
    dataset = ColbertCheckpointDataset(filepath=tmp_path / "none")
    assert dataset.load().model_id == str(tmp_path / "none")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"filepath": "a", "repo_id": "b/c"}],
)
def test_ambiguous_sources(arguments):
    with pytest.raises(InputError):
        ColbertCheckpointDataset(**arguments)
