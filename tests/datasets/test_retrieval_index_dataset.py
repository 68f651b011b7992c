import json
from dataclasses import replace

import pytest
import torch
from kedro.io import DatasetError
from safetensors.torch import load_file, save_file

from ja_instruct.datasets.retrieval_index_dataset import RetrievalIndexDataset
from ja_instruct.retrieval.colbert import EncodedQuestions
from ja_instruct.retrieval.index import RetrievalIndex

QUESTIONS = ("日本の首都は?", "富士山の高さは?\u2028何メートル?", "川")


@pytest.fixture
def index() -> RetrievalIndex:
    encoded = EncodedQuestions(
        questions=QUESTIONS,
        embeddings=torch.randn(12, 4),
        lengths=torch.tensor([4, 5, 3]),
        padded_length=8,
        truncated=(1,),
    )
    return RetrievalIndex("colbert", QUESTIONS, encoded, "tiny", "abc", 20, {"torch": "2.13"})


@pytest.fixture
def dataset(tmp_path) -> RetrievalIndexDataset:
    return RetrievalIndexDataset(filepath=tmp_path / "feature" / "retrieval_index")


def test_round_trip(dataset, index):
    assert not dataset.exists()
    dataset.save(index)
    assert dataset.exists()
    loaded = dataset.load()
    assert torch.equal(loaded.encoded.embeddings, index.encoded.embeddings)
    assert torch.equal(loaded.encoded.lengths, index.encoded.lengths)
    assert loaded.encoded.questions == QUESTIONS
    assert loaded.encoded.truncated == (1,)
    assert (loaded.retriever, loaded.questions) == ("colbert", QUESTIONS)
    assert (loaded.model_id, loaded.checkpoint_sha256) == ("tiny", "abc")
    assert loaded.max_document_tokens == 20
    assert loaded.versions == {"torch": "2.13"}


def test_an_index_for_bm25_is_its_questions_and_replaces_another(dataset, index, tmp_path):
    dataset.save(index)
    dataset.save(RetrievalIndex("bm25", QUESTIONS, versions={"bm25s": "0.3"}))
    names = sorted(path.name for path in (tmp_path / "feature").rglob("*"))
    assert names == ["index.json", "retrieval_index"]
    assert dataset.exists()
    assert dataset.load() == RetrievalIndex("bm25", QUESTIONS, versions={"bm25s": "0.3"})


def test_an_interrupted_save_leaves_no_index(dataset, index, tmp_path):
    class Interrupted(dict):
        def __iter__(self):
            raise KeyboardInterrupt

        items = keys = __iter__

    broken = replace(index, versions=Interrupted(torch="2.13"))
    with pytest.raises(KeyboardInterrupt):
        dataset.save(broken)
    assert not dataset.exists()
    assert list((tmp_path / "feature").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": ["日本の首都は?", "川"]}, "made from other questions"),
        ({"questions": QUESTIONS[::-1]}, "made from other questions"),
        ({"padded_length": 4}, "the window is 4"),
        ({"retriever": "grep"}, "unknown retriever 'grep'"),
    ],
)
def test_a_description_that_disagrees_is_refused(dataset, index, tmp_path, change, message):
    dataset.save(index)
    path = tmp_path / "feature" / "retrieval_index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        dataset.load()


@pytest.mark.parametrize("lengths", [[4, 5, 4], [6, 6]])
def test_tensors_that_disagree_are_refused(dataset, index, tmp_path, lengths):
    dataset.save(index)
    path = tmp_path / "feature" / "retrieval_index" / "embeddings.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | {"lengths": torch.tensor(lengths)}, path, metadata=metadata)
    with pytest.raises(DatasetError, match="delete the directory and make the index again"):
        dataset.load()


def test_unreadable_files(dataset, index, tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.load()
    dataset.save(index)
    (tmp_path / "feature" / "retrieval_index" / "embeddings.safetensors").unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.load()
    (tmp_path / "feature" / "retrieval_index" / "index.json").write_text("{")
    with pytest.raises(DatasetError, match=r"index\.json: not valid JSON .*--pipelines=rag_index"):
        dataset.load()


def test_preview_shows_the_encoder_and_some_questions(dataset, index):
    dataset.save(index)
    shown = json.loads(dataset.preview(nrows=2))
    assert shown["model_id"] == "tiny"
    assert shown["questions"] == list(QUESTIONS[:2])
