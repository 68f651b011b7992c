import json
import shutil

import pytest
import yaml
from datasets import Dataset
from pydantic import ValidationError
from tiny_colbert import make_tiny_colbert

from ja_instruct.errors import InputError
from ja_instruct.pipelines.rag_index import create_pipeline
from ja_instruct.pipelines.rag_index.nodes import encode_pool, find_weak_questions
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval.index import ColbertCheckpoint

PARAMS = RagIndexParameters(retriever="colbert", batch_size=4, max_document_tokens=None)
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
        "encoded": 3,
        "reused": 0,
        "empty": 1,
        "duplicated": 1,
        "truncated": 1,
    }
    assert (index.retriever, report["retriever"]) == ("colbert", "colbert")
    assert report["positions"] == {"empty": [1], "duplicated": [2], "truncated": [3]}
    for warning in ("empty", "1 (b)", "duplicated", "2 (c)", "first 124 tokens", "3 (d)"):
        assert warning in caplog.text


def test_bm25_uses_no_encoder(caplog):
    def refuse():
        raise AssertionError("the checkpoint was used")

    pairs = [*PAIRS, {"id": "e", "input": "日本の 首都はどこですか｡", "output": "東京"}]
    pairs += [{"id": "f", "input": "\u200b", "output": "?"}]
    params = PARAMS.model_copy(update={"retriever": "bm25"})
    index, report = encode_pool(Dataset.from_list(pairs), ColbertCheckpoint(refuse, "none"), params)
    assert index.questions == tuple(pair["input"] for pair in pairs)
    assert (index.retriever, index.encoded, index.model_id) == ("bm25", None, None)
    assert set(index.versions) == {"ja-instruct", "bm25s"}
    # the fifth is the first, but for the width of a mark and a space
    assert report["summary"] == {"questions": 6, "empty": 2, "duplicated": 2}
    assert report["positions"] == {"empty": [1, 5], "duplicated": [2, 4]}
    for warning in ("empty", "no query finds them", "1 (b), 5 (f)", "2 (c), 4 (e)"):
        assert warning in caplog.text
    assert "truncated" not in caplog.text


def test_hybrid_encodes_too(checkpoint, caplog):
    params = PARAMS.model_copy(update={"retriever": "hybrid"})
    index, report = encode_pool(Dataset.from_list(PAIRS), checkpoint, params)
    assert (index.retriever, report["retriever"]) == ("hybrid", "hybrid")
    assert index.encoded.questions == index.questions
    assert {"ragatouille", "bm25s"} <= set(index.versions)
    assert report["summary"]["truncated"] == 1
    assert "first 124 tokens" in caplog.text


def test_all_retrievers_agree_on_empty_questions():
    for retriever in ("colbert", "bm25", "hybrid"):
        assert find_weak_questions(["\u200b", " ", "川"], retriever)["empty"] == [0, 1]


@pytest.mark.parametrize("retriever", ["colbert", "bm25"])
def test_an_empty_pool_is_refused(checkpoint, retriever):
    params = PARAMS.model_copy(update={"retriever": retriever})
    with pytest.raises(InputError, match="'few_shot_pool' is empty"):
        encode_pool(Dataset.from_dict({"input": [], "output": []}), checkpoint, params)


def test_a_clean_pool_gives_no_warning(checkpoint, caplog):
    pairs = Dataset.from_list(PAIRS[:1]).remove_columns("id")
    encode_pool(pairs, checkpoint, PARAMS)
    assert not [record for record in caplog.records if record.name.startswith("ja_instruct")]


def test_columns_are_required(checkpoint):
    pairs = Dataset.from_list([{"question": "日本の首都は?", "output": "東京"}])
    with pytest.raises(InputError, match=r"lacks the column\(s\) input"):
        encode_pool(pairs, checkpoint, PARAMS)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_siez": 1}, {"retriever": "bm52"}])
def test_parameters_are_checked(settings):
    with pytest.raises(ValidationError):
        RagIndexParameters(**PARAMS.model_dump() | settings)


def test_pipeline_contract():
    pipeline = create_pipeline()
    inputs = {"few_shot_pool", "retriever_checkpoint", "params:rag_index", "encoding_cache"}
    assert pipeline.inputs() == inputs
    assert pipeline.outputs() == {"retrieval_index", "rag_index_report"}
    assert all(node.tags == {"rag_index"} for node in pipeline.nodes)


@pytest.fixture
def run_on(project, add_environment, invoke_kedro, tmp_path):
    """A function that runs ``rag_index`` on a pool and returns its report."""
    pool = tmp_path / "pool.jsonl"
    environment = add_environment("growing-pool")
    catalog = project / "conf/growing-pool/catalog.yml"
    entries = yaml.safe_load(catalog.read_text("utf-8"))
    entries["qa_pairs"]["filepath"] = str(pool)
    catalog.write_text(yaml.safe_dump(entries), "utf-8")

    def run(pairs, *arguments):
        lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
        pool.write_text("\n".join(lines), "utf-8")
        result = invoke_kedro("--pipeline=rag_index", environment, *arguments)
        assert result.exit_code == 0, result.output
        reporting = project / "data/08_reporting/growing-pool/rag_index_report.json"
        return json.loads(reporting.read_text("utf-8"))

    return run


def test_a_second_run_encodes_only_new_questions(run_on):
    def counts(report):
        return report["summary"]["encoded"], report["summary"]["reused"]

    assert counts(run_on(PAIRS[:2])) == (2, 0)
    assert counts(run_on(PAIRS)) == (1, 2)
    assert counts(run_on(PAIRS)) == (0, 3)
    assert counts(run_on(PAIRS, "--params=rag_index.retriever=hybrid")) == (0, 3)
    assert counts(run_on(PAIRS, "--params=rag_index.max_document_tokens=20")) == (3, 0)
    assert "encoded" not in run_on(PAIRS, "--params=rag_index.retriever=bm25")["summary"]
    assert counts(run_on(PAIRS, "--params=rag_index.max_document_tokens=20")) == (0, 3)
    assert counts(run_on(PAIRS)) == (3, 0)


def test_missing_outputs_are_made_from_the_cache(run_on, project):
    run_on(PAIRS)
    index = project / "data/04_feature/growing-pool/retrieval_index"
    shutil.rmtree(index)
    report = run_on(PAIRS, "--only-missing-outputs")
    assert (report["summary"]["encoded"], report["summary"]["reused"]) == (0, 3)
    assert index.is_dir()
