import json
from dataclasses import replace

import pytest
import torch
from tiny_colbert import make_tiny_colbert

from ja_instruct.errors import InputError
from ja_instruct.retrieval.bm25 import search_bigrams
from ja_instruct.retrieval.colbert import encode_questions, search
from ja_instruct.retrieval.colbert_checkpoint import hash_weights
from ja_instruct.retrieval.index import (
    ColbertCheckpoint,
    RetrievalIndex,
    require_same_pool,
    retrieve,
)
from ja_instruct.retrieval.index_files import EncodingCache
from ja_instruct.retrieval.ranking import fuse_rankings

QUESTIONS = (
    "日本の首都はどこですか。",
    "富士山の高さを教えてください!",
    "夏目漱石の代表作を3つ挙げてください。",
    "日本で一番長い川は何ですか。",
    "日本の首都はどこですか。",
)
QUERIES = ["日本の首都は?", "富士山について", "一番長い川"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> ColbertCheckpoint:
    directory = tmp_path_factory.mktemp("colbert") / "tiny"
    make_tiny_colbert(directory, [*QUESTIONS, *QUERIES])
    return ColbertCheckpoint(directory, "tiny")


@pytest.fixture(scope="module")
def colbert(checkpoint) -> RetrievalIndex:
    return RetrievalIndex(
        "colbert",
        QUESTIONS,
        encode_questions(checkpoint.directory, list(QUESTIONS)),
        "tiny",
        checkpoint.sha256,
        versions={"torch": "2"},
    )


def refuse():
    raise AssertionError("the checkpoint was used")


UNTOUCHABLE = ColbertCheckpoint(refuse, "none")


def test_colbert_is_its_search(checkpoint, colbert):
    expected = search(checkpoint.directory, colbert.encoded, QUERIES, 3, max_query_tokens=100)
    assert retrieve(colbert, checkpoint, QUERIES, 3, max_query_tokens=100) == expected


def test_bm25_does_not_use_the_checkpoint():
    index = RetrievalIndex("bm25", QUESTIONS)
    found = retrieve(index, UNTOUCHABLE, QUERIES, 3, max_query_tokens=100)
    assert found == search_bigrams(QUESTIONS, QUERIES, 3)
    assert [results[0].position for results in found] == [0, 1, 3]


def test_hybrid_fuses_both(checkpoint, colbert):
    found = retrieve(replace(colbert, retriever="hybrid"), checkpoint, QUERIES, 4)
    vectors = search(checkpoint.directory, colbert.encoded, QUERIES, 5)
    words = search_bigrams(QUESTIONS, QUERIES, 5)
    for results, one, other in zip(found, vectors, words, strict=True):
        related = [result.position for result in other if result.score]
        assert 0 < len(related) < 5
        assert results == fuse_rankings([[result.position for result in one], related], 4)


class TestEveryRetriever:
    @pytest.fixture(params=["colbert", "bm25", "hybrid"])
    def index(self, request, colbert):
        return replace(colbert, retriever=request.param)

    def test_results_are_ordered_and_deterministic(self, checkpoint, index):
        found = retrieve(index, checkpoint, QUERIES, 5)
        for results in found:
            assert sorted(result.position for result in results) == list(range(5))
            # the two that are equal too: the earlier first
            assert results == sorted(results, key=lambda result: (-result.score, result.position))
        assert retrieve(index, checkpoint, QUERIES, 5) == found

    def test_fewer_results_are_the_first_of_more(self, checkpoint, index):
        for top_k in (1, 2, 4):
            few = retrieve(index, checkpoint, QUERIES, top_k)
            many = retrieve(index, checkpoint, QUERIES, 5)
            assert few == [results[:top_k] for results in many]

    def test_top_k_is_lowered_to_the_pool(self, checkpoint, index, caplog):
        found = retrieve(index, checkpoint, QUERIES, top_k=20)
        assert [len(results) for results in found] == [5, 5, 5]
        assert "'top_k' is 20, the pool has 5 questions" in caplog.text

    def test_top_k_of_nothing_is_refused(self, checkpoint, index):
        with pytest.raises(InputError, match="'top_k' is 0"):
            retrieve(index, checkpoint, QUERIES, 0)

    def test_no_queries(self, checkpoint, index):
        assert retrieve(index, checkpoint, [], 2) == []


@pytest.mark.parametrize("retriever", ["colbert", "hybrid"])
def test_another_checkpoint_is_refused(checkpoint, colbert, retriever):
    other = ColbertCheckpoint(checkpoint.directory, "other", "def")
    with pytest.raises(InputError, match="vectors cannot be compared"):
        retrieve(replace(colbert, retriever=retriever), other, QUERIES, top_k=1)


def test_an_index_of_another_pool_is_refused():
    index = RetrievalIndex("bm25", QUESTIONS)
    require_same_pool(index, list(QUESTIONS))
    with pytest.raises(InputError, match="would name the wrong pairs"):
        require_same_pool(index, list(QUESTIONS[::-1]))


def test_a_checkpoint_is_fetched_once_and_on_demand(checkpoint):
    fetched = []

    def fetch():
        fetched.append(1)
        return checkpoint.directory

    handle = ColbertCheckpoint(fetch, "tiny")
    assert (handle.model_id, fetched) == ("tiny", [])
    assert handle.directory == checkpoint.directory
    assert handle.sha256 == hash_weights(checkpoint.directory)
    assert fetched == [1]


class TestEncodingCache:
    @pytest.fixture
    def read(self, tmp_path, colbert):
        cache = EncodingCache(tmp_path / "cache")
        cache.write(colbert)

        def read(checkpoint, max_document_tokens=None, versions=(("torch", "2"),)):
            return cache.read(checkpoint, max_document_tokens, dict(versions))

        return read

    def test_the_same_encoder(self, checkpoint, colbert, read):
        found = read(checkpoint)
        assert found.questions == colbert.questions
        assert torch.equal(found.embeddings, colbert.encoded.embeddings)

    @pytest.mark.parametrize(
        "changes",
        [
            {"max_document_tokens": 20},
            {"versions": {"torch": "3"}.items()},
            {"versions": {"torch": "2", "more": "1"}.items()},
        ],
    )
    def test_other_settings(self, checkpoint, read, changes):
        assert read(checkpoint, **changes) is None

    def test_another_encoder(self, checkpoint, read):
        assert read(ColbertCheckpoint(checkpoint.directory, "other", "def")) is None

    def test_nothing_cached(self, tmp_path):
        assert EncodingCache(tmp_path / "none").read(UNTOUCHABLE, None, {}) is None

    def test_an_unreadable_cache_is_ignored(self, tmp_path, checkpoint, read, caplog):
        caplog.set_level("INFO", logger="ja_instruct")
        (tmp_path / "cache" / "index.json").write_text("{}")
        assert read(checkpoint) is None
        assert "the cache cannot be used" in caplog.text


def test_bm25_loads_no_model_library(run_python, tmp_path):
    """From the pool to saved index to results, in a process of its own."""
    script = """
import json, sys
from datasets import Dataset
from ja_instruct.datasets import ColbertCheckpointDataset, RetrievalIndexDataset
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval.index import retrieve

params = RagIndexParameters(retriever="bm25", batch_size=1, max_document_tokens=None)
checkpoint = ColbertCheckpointDataset(filepath="no such directory").load()
index = RetrievalIndexDataset(filepath=sys.argv[1])
pairs = Dataset.from_list([{"input": text, "output": ""} for text in ("山の高さ", "川の長さ")])
index.save(encode_pool(pairs, checkpoint, params)[0])
results = retrieve(index.load(), checkpoint, ["長さ"], 1)
loaded = {"torch", "transformers", "ragatouille", "colbert"} & set(sys.modules)
print(json.dumps([results[0][0].position, sorted(loaded)]))
"""
    done = run_python("-c", script, tmp_path / "index", cwd=tmp_path)
    assert json.loads(done.stdout) == [1, []]
