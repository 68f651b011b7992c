import json
import logging
import os
import shutil
import sys
import warnings

import library_state
import numpy as np
import pytest
import torch
from kedro.io import AbstractDataset
from library_state import list_attributes
from safetensors.torch import load_file, save_file
from tiny_colbert import make_tiny_colbert

from ja_instruct.datasets import JSONLinesDataset
from ja_instruct.errors import InputError
from ja_instruct.retrieval.colbert import encode_questions, score_packed, search
from ja_instruct.retrieval.colbert_checkpoint import (
    check_checkpoint,
    load_retriever,
    on_cpu,
    prove_weights,
    quiet,
)

QUESTIONS = [
    "日本の首都はどこですか。",
    "富士山の高さを教えてください!",
    "夏目漱石の代表作を3つ挙げてください。",
    "",
    "日本で一番長い川は何ですか。",
]
QUERIES = ["日本の首都は?", "富士山について", "川の長さ"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("colbert") / "tiny"
    make_tiny_colbert(directory, [*QUESTIONS, *QUERIES])
    return directory


@pytest.fixture(scope="module")
def encoded(checkpoint):
    return encode_questions(checkpoint, QUESTIONS)


def tamper(checkpoint, target, change):
    """Return a copy of the checkpoint with changed weights."""
    shutil.copytree(checkpoint, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors")
    return target


def score_plainly(checkpoint, queries, questions):
    """MaxSim from the model's own token vectors, without RAGatouille's batching and padding."""
    colbert = load_retriever(checkpoint).model.inference_ckpt
    scores = torch.zeros(len(queries), len(questions))
    for row, query in enumerate(queries):
        (query_vectors,) = colbert.queryFromText([query], bsize=1)
        for column, question in enumerate(questions):
            (vectors,) = colbert.docFromText([question], bsize=1)[0]
            # A question shorter than the window is padded with zero vectors.
            similarities = (query_vectors @ vectors.T).clamp(min=0)
            scores[row, column] = similarities.max(dim=1).values.sum()
    return scores


def test_scores_are_plain_maxsim(checkpoint, encoded):
    expected = score_plainly(checkpoint, QUERIES, QUESTIONS)
    results = search(checkpoint, encoded, QUERIES, top_k=len(QUESTIONS))
    for row, found in enumerate(results):
        order = expected[row].argsort(descending=True).tolist()
        assert [result.position for result in found] == order
        for result in found:
            assert result.score == pytest.approx(float(expected[row, result.position]), abs=1e-4)


def test_packed_scores_are_those_of_padded_texts():
    """RAGatouille's formula on texts padded to the window, one of which fills it."""
    generator = torch.Generator().manual_seed(0)
    lengths, window = torch.tensor([3, 9, 1, 5]), 9
    # nothing is near to anything, so that the zero rows decide
    embeddings = -torch.rand(18, 4, generator=generator)
    query = torch.rand(1, 6, 4, generator=generator)
    query[:, :2] *= -1
    padded = torch.zeros(4, window, 4)
    padded[torch.arange(window) < lengths[:, None]] = embeddings
    expected = (padded @ query.permute(0, 2, 1)).max(1).values.sum(-1)
    assert torch.allclose(score_packed(query[0], embeddings, lengths, window), expected)


def ask_ragatouille(checkpoint, questions, queries, top_k):
    """Return positions and scores from RAGatouille, which is called once for each query."""
    retriever = load_retriever(checkpoint)
    with on_cpu():
        retriever.encode(list(questions), verbose=False)
        found = [retriever.search_encoded_docs(query, k=top_k) for query in queries]
    return [[(row["result_index"], row["score"]) for row in rows] for rows in found]


def test_search_equals_ragatouille_called_once_for_each_query(checkpoint, encoded):
    # one with more words than 32 tokens hold, which would set the length of all in one call
    queries = [*QUERIES, "川 " * 40, ""]
    expected = ask_ragatouille(checkpoint, QUESTIONS, queries, 3)
    results = search(checkpoint, encoded, queries, top_k=3)
    for found, rows in zip(results, expected, strict=True):
        assert [result.position for result in found] == [position for position, _ in rows]
        scores = [score for _, score in rows]
        assert [result.score for result in found] == pytest.approx(scores, abs=1e-5)


@pytest.mark.slow
@pytest.mark.demo
def test_examples_of_real_tasks_are_those_of_ragatouille(shared_data, tmp_path, read_configuration):
    """The 20 best of 175 questions for 100 tasks, with the demo's encoder; takes a minute."""
    entry = read_configuration("demo")["catalog"]["retriever_checkpoint"]
    entry = {**entry, "filepath": str(tmp_path / "encoder")}
    directory = AbstractDataset.from_config("retriever_checkpoint", entry).load().directory
    pool, tasks = (
        [row["input"] for row in JSONLinesDataset(filepath=shared_data / name).load()]
        for name in ("alpaca_jp_seed_tasks/qa.jsonl", "elyza_tasks_100/tasks.jsonl")
    )
    expected = ask_ragatouille(directory, pool, tasks, 20)
    results = search(directory, encode_questions(directory, pool), tasks, top_k=20)
    for found, rows in zip(results, expected, strict=True):
        assert [result.position for result in found] == [position for position, _ in rows]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Let colbert-ai find a GPU, whose tensors hold no values, as its modules do when imported."""
    from colbert.infra.config.settings import RunSettings
    from colbert.modeling import base_colbert
    from colbert.modeling.tokenization import doc_tokenization, query_tokenization

    for module in (base_colbert, doc_tokenization, query_tokenization):
        monkeypatch.setattr(module, "DEVICE", torch.device("meta"))
    monkeypatch.setattr(RunSettings, "total_visible_gpus", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_gpu_changes_nothing(checkpoint, encoded, pretended_gpu):
    expected = search(checkpoint, encoded, QUERIES, top_k=5)
    again = encode_questions(checkpoint, QUESTIONS)
    assert (again.embeddings.dtype, again.embeddings.device.type) == (torch.float32, "cpu")
    assert torch.equal(again.embeddings, encoded.embeddings)
    assert search(checkpoint, again, QUERIES, top_k=5) == expected


def test_colbert_leaves_nothing_behind(checkpoint, monkeypatch):
    from colbert.modeling.colbert import ColBERT
    from ragatouille import RAGPretrainedModel

    original = RAGPretrainedModel.encode

    def encode(self, documents, **settings):
        """Set variables, as colbert-ai and what it imports do when they are imported."""
        os.environ.update(TOKENIZERS_PARALLELISM="true", SET_BY_A_LIBRARY="1")
        return original(self, documents, **settings)

    def run():
        return search(checkpoint, encode_questions(checkpoint, QUESTIONS), QUERIES, top_k=1)

    run()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(RAGPretrainedModel, "encode", encode)
    before = list_attributes(), dict(os.environ)
    run()
    assert list_attributes() == before[0]
    assert not hasattr(ColBERT, "loaded_extensions")
    assert dict(os.environ) == before[1]


@pytest.mark.slow
def test_nodes_leave_nothing_behind(finished_project, run_python):
    """In a new process, in which the libraries are imported for the first time."""
    done = run_python(library_state.__file__, finished_project)
    assert json.loads(done.stdout.splitlines()[-1]) == {"variables": [], "attributes": []}


def test_batches_do_not_change_the_embeddings(checkpoint, encoded):
    one_at_a_time = encode_questions(checkpoint, QUESTIONS, batch_size=1)
    assert torch.equal(one_at_a_time.lengths, encoded.lengths)
    assert torch.allclose(one_at_a_time.embeddings, encoded.embeddings, atol=1e-5)


def test_questions_beyond_the_window_are_cut_and_named(checkpoint):
    encoded = encode_questions(checkpoint, [*QUESTIONS, "川" * 50], max_document_tokens=20)
    assert encoded.truncated == (2, 5)
    assert encoded.padded_length == 20
    assert encoded.lengths.tolist()[5] == 20


def test_long_queries_are_cut_unless_allowed(checkpoint, encoded, caplog):
    # The question asked stands at the end, beyond RAGatouille's 32 tokens.
    long_queries = ["あ" * 60 + question for question in QUERIES]
    cut = search(checkpoint, encoded, long_queries, top_k=5)
    assert "3 of 3 queries are longer than 32 tokens" in caplog.text
    assert np.allclose(cut[0], cut[1])
    whole = search(checkpoint, encoded, long_queries, top_k=5, max_query_tokens=100)
    assert not np.allclose(whole[0], whole[1])


def test_query_length_does_not_depend_on_other_queries(checkpoint, encoded):
    queries = [QUERIES[0], "川" * 90]
    together = search(checkpoint, encoded, queries, top_k=5, max_query_tokens=100)
    alone = search(checkpoint, encoded, queries[:1], top_k=5)
    assert np.allclose(together[0], alone[0])


def test_windows_are_kept(checkpoint, encoded):
    long = ["川" * 200]
    cut = encode_questions(checkpoint, long, max_document_tokens=125)
    assert cut.padded_length == 124
    assert cut.truncated == (0,)
    most = search(checkpoint, encoded, long, top_k=5, max_query_tokens=124)
    assert search(checkpoint, encoded, long, top_k=5, max_query_tokens=508) == most


@pytest.fixture
def encoded_texts(monkeypatch):
    """The texts that RAGatouille encodes, in order."""
    from ragatouille import RAGPretrainedModel

    given = []
    original = RAGPretrainedModel.encode

    def encode(self, documents, **settings):
        given.extend(documents)
        return original(self, documents, **settings)

    monkeypatch.setattr(RAGPretrainedModel, "encode", encode)
    return given


def test_only_added_questions_are_encoded(checkpoint, encoded, encoded_texts):
    added = ["日本で一番高い山は?", "川" * 200, QUESTIONS[0], "川" * 200]
    # in another order, one of the old left out
    pool = [added[0], *QUESTIONS[:0:-1], *added[1:]]
    grown = encode_questions(checkpoint, pool, known=encoded)
    assert sorted(encoded_texts) == sorted(set(added) - set(QUESTIONS))
    assert grown.truncated == (5, 7)
    anew = encode_questions(checkpoint, pool)
    assert grown.questions == anew.questions
    assert (grown.padded_length, grown.truncated) == (anew.padded_length, anew.truncated)
    assert torch.equal(grown.lengths, anew.lengths)
    # padding changes the order of sums
    assert torch.allclose(grown.embeddings, anew.embeddings, atol=1e-5)


def test_removing_questions_needs_no_model(encoded, tmp_path):
    pool = [QUESTIONS[4], QUESTIONS[1]]
    shrunk = encode_questions(tmp_path / "no checkpoint", pool, known=encoded)
    assert shrunk.questions == tuple(pool)
    expected = encoded.embeddings.split(encoded.lengths.tolist())
    assert torch.equal(shrunk.embeddings, torch.cat([expected[4], expected[1]]))


def test_ties_are_broken_by_position(checkpoint):
    same = "日本の首都はどこですか。"
    pool = ["川", same, "富士山の高さを教えてください!", same, same]
    encoded = encode_questions(checkpoint, pool)
    (everything,) = search(checkpoint, encoded, [same], top_k=5)
    assert [result.position for result in everything[:3]] == [1, 3, 4]
    for top_k in (1, 2, 3, 4):
        (results,) = search(checkpoint, encoded, [same], top_k=top_k)
        assert results == everything[:top_k]


def test_nothing_is_printed(checkpoint, encoded, capfd):
    search(checkpoint, encoded, QUERIES, top_k=1)
    assert capfd.readouterr().out == ""


def test_prints_and_warnings_become_log_lines(caplog, capfd, monkeypatch):
    # a run of Kedro before this has left handlers that print
    for name in ("", "ja_instruct"):
        handlers = [] if name else [caplog.handler]
        monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
    caplog.set_level(logging.DEBUG, logger="ja_instruct.retrieval.colbert_checkpoint")
    with quiet():
        print("Shapes:", 3, end="")
        print(" and more\n\n  next ")
        warnings.warn("old way", FutureWarning, stacklevel=1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "colbert: Shapes: 3 and more",
        "colbert: next",
        "colbert: FutureWarning: old way",
    ]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert capfd.readouterr() == ("", "")


def test_output_is_logged_once_even_before_a_failure(caplog, monkeypatch):
    """A log handler may print, as Kedro's does; its output is not logged again."""
    caplog.set_level(logging.DEBUG, logger="ja_instruct.retrieval.colbert_checkpoint")

    class Printing(logging.Handler):
        def emit(self, record):
            print(record.getMessage(), file=sys.stdout)

    logger = logging.getLogger("ja_instruct.retrieval.colbert_checkpoint")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, Printing()])
    with pytest.raises(KeyError), quiet():
        print("once")
        raise KeyError
    assert [record.getMessage() for record in caplog.records] == ["colbert: once"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # transformers would initialize it at random
        (lambda weights: weights.pop("linear.weight"), r"lack\(s\) 1 .* such as 'linear.weight'"),
        (lambda weights: weights.update({"bert.extra": torch.zeros(1)}), "unused by the model, 1"),
    ],
)
def test_missing_and_extra_weights_are_refused(checkpoint, tmp_path, change, message):
    broken = tamper(checkpoint, tmp_path / "broken", change)
    with pytest.raises(InputError, match=message):
        load_retriever(broken)


def test_changed_weights_are_detected(checkpoint, tmp_path):
    def change(weights):
        weights["linear.weight"][0, 0] += 1

    model = load_retriever(checkpoint).model.inference_ckpt.model
    prove_weights(model, checkpoint)
    broken = tamper(checkpoint, tmp_path / "broken", change)
    with pytest.raises(InputError, match=r"differ\(s\) .* 'linear.weight'"):
        prove_weights(model, broken)


def test_a_damaged_file_is_named(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_retriever(broken)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("artifact.metadata", "'artifact.metadata' is missing"),
        ("config.json", "'config.json' is missing"),
        ("model.safetensors", "has no .safetensors file"),
        (None, "contains Python code"),
    ],
)
def test_incomplete_and_unsafe_checkpoints(checkpoint, tmp_path, remove, message):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    if remove is None:
        (broken / "modeling.py").write_text("raise SystemExit")
    else:
        (broken / remove).unlink()
    with pytest.raises(InputError, match=message):
        check_checkpoint(broken)


def test_the_model_named_by_the_metadata_is_not_loaded(checkpoint, tmp_path):
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    content = (foreign / "artifact.metadata").read_text()
    named = content.replace("{", '{"model_name": "cl-tohoku/bert-base-japanese-v3",', 1)
    (foreign / "artifact.metadata").write_text(named)
    load_retriever(foreign)
