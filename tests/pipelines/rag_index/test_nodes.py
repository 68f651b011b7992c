import pytest
from datasets import Dataset
from pydantic import ValidationError
from tiny_colbert import make_tiny_colbert

from ja_instruct.errors import InputError
from ja_instruct.pipelines.rag_index import create_pipeline
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval import ColbertCheckpoint

PARAMS = RagIndexParameters(batch_size=4, max_document_tokens=None)
PAIRS = [
    {"id": "a", "input": "日本の首都はどこですか。", "output": "東京です。"},
    {"id": "b", "input": "　", "output": "?"},
    {"id": "c", "input": "日本の首都はどこですか。", "output": "東京都です。"},
    {"id": "d", "input": "長い" * 100, "output": "はい。"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> ColbertCheckpoint:
    directory = tmp_path_factory.mktemp("colbert") / "tiny"
    make_tiny_colbert(directory, [pair["input"] for pair in PAIRS])
    return ColbertCheckpoint(directory, "tiny", "abc")


def test_index_and_report(checkpoint, caplog):
    index, report = encode_pool(Dataset.from_list(PAIRS), checkpoint, PARAMS)
    assert index.encoded.questions == tuple(pair["input"] for pair in PAIRS)
    assert (index.model_id, index.checkpoint_sha256) == ("tiny", "abc")
    assert set(index.versions) >= {"ragatouille", "colbert-ai", "transformers", "torch"}
    assert report["summary"] == {
        "questions": 4,
        "dimension": 16,
        "tokens": int(index.encoded.lengths.sum()),
        "empty": 1,
        "duplicated": 1,
        "truncated": 1,
    }
    assert report["positions"] == {"empty": [1], "duplicated": [2], "truncated": [3]}
    for warning in ("empty", "1 (b)", "duplicated", "2 (c)", "first 124 tokens", "3 (d)"):
        assert warning in caplog.text


def test_a_clean_pool_gives_no_warning(checkpoint, caplog):
    pairs = Dataset.from_list(PAIRS[:1]).remove_columns("id")
    encode_pool(pairs, checkpoint, PARAMS)
    assert not [record for record in caplog.records if record.name.startswith("ja_instruct")]


def test_columns_are_required(checkpoint):
    pairs = Dataset.from_list([{"question": "日本の首都は?", "output": "東京"}])
    with pytest.raises(InputError, match=r"lacks the column\(s\) input"):
        encode_pool(pairs, checkpoint, PARAMS)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_siez": 1}])
def test_parameters_are_checked(settings):
    with pytest.raises(ValidationError):
        RagIndexParameters(**{"batch_size": 1, "max_document_tokens": None} | settings)


def test_pipeline_contract():
    pipeline = create_pipeline()
    assert pipeline.inputs() == {"qa_pairs", "retriever_checkpoint", "params:rag_index"}
    assert pipeline.outputs() == {"retrieval_index", "rag_index_report"}
    assert all(node.tags == {"rag_index"} for node in pipeline.nodes)
