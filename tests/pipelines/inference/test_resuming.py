"""A run that was killed comes to what it would have come to otherwise."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from ja_instruct.datasets import AdapterDataset
from ja_instruct.engine.answer import Answer
from ja_instruct.engine.backends import OneByOne
from ja_instruct.engine.batched import Batched
from ja_instruct.models.directory import ModelArtifact, ModelDirectory
from ja_instruct.pipelines.inference.answering import (
    WITHOUT_EFFECT,
    answer_all,
    answer_keys,
    weights_of_answers,
)
from ja_instruct.pipelines.inference.nodes import answer_tasks
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.sft.backends import adapt_with_peft
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.prompts import PromptParameters
from ja_instruct.tables.answer_store import AnswerStore

WHOLE = {"text": "答", "prompt_tokens": 3, "new_tokens": 2, "finished": True, "seconds": 0.5}
KILLED = Path(__file__).parents[2] / "answers_to_be_killed.py"
QUESTIONS = ["日本の首都は", "富士山の高さを教えてください。", "春", "季節は四つあります。", "川"]
PROMPTS = [
    {"task_id": i, "input": question, "prompt": f"質問:{question}\n回答:"}
    for i, question in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module", params=["one_by_one", "batched"])
def section(read_parameters, request):
    section = read_parameters("test")["inference"]
    # so few max_num_seqs that some answers are there while others have not begun
    return {
        **section,
        "engine": request.param,
        "batching": {**section["batching"], "max_num_seqs": 2},
    }


@pytest.fixture(scope="module")
def texts(read_parameters):
    return read_parameters("base")["prompts"]


@pytest.fixture(scope="module")
def adapter(tiny_nf4, read_parameters, tmp_path_factory):
    model, tokenizer = adapt_with_peft(tiny_nf4, SftParameters(**read_parameters("test")["sft"]))
    dataset = AdapterDataset(filepath=tmp_path_factory.mktemp("adapter") / "adapter")
    dataset.save(ModelArtifact(model, tokenizer, {}))
    return dataset.load()


@pytest.fixture
def answer(tiny_nf4, adapter, section, texts):
    def call(store):
        parameters = InferenceParameters(**section)
        prompts = Dataset.from_list(PROMPTS)
        return answer_tasks(
            prompts, store, tiny_nf4, adapter, PromptParameters(**texts), parameters
        )

    return call


def without_times(report):
    for row in report["tasks"]:
        del row["seconds"]
    for key in ("seconds", "tokens_per_second"):
        del report["summary"][key]
    return report


def test_killed_run_resumes_to_the_same_answers(
    answer, tiny_nf4, adapter, section, texts, tmp_path, monkeypatch, run_python
):
    kept, path = 3, tmp_path / "answers.jsonl"
    directories = {
        name: {"path": str(one.path), "provenance": one.provenance}
        for name, one in (("model", tiny_nf4), ("adapter", adapter))
    }
    job = {"kept": kept, "store": str(path), "parameters": section, "texts": texts, **directories}
    (tmp_path / "job.json").write_text(json.dumps({**job, "prompts": PROMPTS}), "utf-8")
    run_python(KILLED, tmp_path / "job.json", status=-signal.SIGKILL)
    store = AnswerStore(path)
    assert len(store) == kept
    assert not path.read_bytes().endswith(b"\n")

    keys = answer_keys(
        [prompt["prompt"] for prompt in PROMPTS],
        tiny_nf4,
        adapter,
        InferenceParameters(**section),
        PromptParameters(**texts),
    )
    missing = [one["prompt"] for one, key in zip(PROMPTS, keys, strict=True) if not store.get(key)]
    asked = []
    engine = {"one_by_one": OneByOne, "batched": Batched}[section["engine"]]
    generate = engine.generate

    def watch(self, prompts):
        asked.extend(prompts)
        return generate(self, prompts)

    monkeypatch.setattr(engine, "generate", watch)
    answers, report = answer(store)
    assert asked == missing
    assert len(asked) == len(PROMPTS) - kept
    expected, expected_report = answer(AnswerStore(tmp_path / "other.jsonl"))
    assert answers.to_list() == expected.to_list()
    assert any(answers["output"][:])
    assert without_times(report) == without_times(expected_report)


ONE = {"sha256": "1"}
MODEL = ModelDirectory(Path("model"), "model", provenance={"files": {"a": ONE}})
ADAPTER = ModelDirectory(Path("adapter"), "adapter", provenance={"files": {"b": ONE}})


class TestKeys:
    @pytest.fixture
    def key(self, read_parameters, texts):
        section = read_parameters("test")["inference"]

        def call(text="問い", model=MODEL, adapter=ADAPTER, prompt_format="recipe", **changes):
            batching = {**section["batching"], **changes.pop("batching", {})}
            parameters = InferenceParameters(**{**section, "batching": batching, **changes})
            prompts = PromptParameters(**{**texts, "format": prompt_format})
            (only,) = answer_keys([text], model, adapter, parameters, prompts)
            return only

        return call

    @pytest.mark.parametrize(
        "changes",
        [
            {"text": "問い "},
            {"model": replace(MODEL, provenance={"files": {"a": {"sha256": "2"}}})},
            {"model": replace(MODEL, provenance={"files": {"a": ONE, "tokenizer.json": ONE}})},
            {"adapter": replace(ADAPTER, provenance={"files": {"b": {"sha256": "2"}}})},
            {"adapter": None},
            {"prompt_format": "chat_template"},
            {"max_new_tokens": 9},
            {"repetition_penalty": 1.2},
            {"penalty_on": "answer"},
            {"penalty_spares_end": True},
            {"bad_words": ["質問"]},
            {"bad_words_in": "text"},
            {"engine": "one_by_one"},
            {"batching": {"weights": "nf4"}},
            {"batching": {"kv_cache_dtype": "int8"}},
        ],
    )
    def test_settings_that_change_answers_change_the_key(self, key, changes):
        assert key(**changes) != key()

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": replace(MODEL, path=Path("moved"), model_id="other")},
            {"gpu": {"devices": None, "memory_gb": 3.0, "disk_gb": None}},
            {"top_k": 9},
            {"max_query_tokens": 9},
            {"exclude_same_task": True},
            {"example_diversity": 0.5},
            {"fit_prompt": True},
            {"compare_tasks": 9},
            {"fail_on_failed_tasks": True},
            {"cut_off_is_failure": True},
            {"batching": {"max_num_seqs": 3}},
            {"batching": {"memory_gb": 3.0}},
            {"batching": {"prefill_chunk_size": 3}},
            {"batching": {"cuda_graphs": False}},
        ],
    )
    def test_other_settings_do_not_change_the_key(self, key, changes):
        assert key(**changes) == key()
        # what is not named as without effect is taken to have one
        assert set(changes) <= {*WITHOUT_EFFECT, "model"}

    def test_directory_without_checksums_is_hashed(self, key, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"1")
        foreign = ModelDirectory(tmp_path, "foreign")
        before = key(model=foreign)
        assert key(model=foreign) == before
        (tmp_path / "model.safetensors").write_bytes(b"2")
        assert key(model=foreign) != before


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, ""),
        # of an earlier version, and of an engine that has one kind
        ({"key0": {"text": "答"}, "key1": {"weights": ""}}, ""),
        ({"key0": {"weights": "nf4"}, "key1": {"text": "答"}}, "nf4"),
        ({f"key{i}": {"weights": kind} for i, kind in enumerate(["bf16", "nf4", "nf4"])}, "nf4"),
        # answers to other questions
        ({"other": {"weights": "bf16"}}, ""),
    ],
    ids=["none", "untold", "one", "most", "others"],
)
def test_weights_of_stored_answers(tmp_path, kept, expected):
    store = AnswerStore(tmp_path / "answers.jsonl")
    for name, answer in kept.items():
        store.append(name, {**WHOLE, **answer})
    assert weights_of_answers(store, ["key0", "key1", "key2"]) == expected


class TestAnswerAll:
    @pytest.fixture
    def ask(self, tmp_path):
        def call(yielded):
            store = AnswerStore(tmp_path / "answers.jsonl")
            keys = [f"key{task['task_id']}" for task in PROMPTS[:3]]

            class Backend:
                def generate(self, prompts):
                    yield from yielded

            return answer_all(PROMPTS[:3], keys, store, Backend, "test"), store

        return call

    @staticmethod
    def said(text, error=""):
        return Answer(text, 3, 2, finished=True, seconds=0.1, error=error)

    def test_answers_in_any_order_belong_to_their_tasks(self, ask):
        answers, store = ask((i, self.said(f"答{i}")) for i in (2, 0, 1))
        assert [answer.text for answer in answers] == ["答0", "答1", "答2"]
        assert [store.get(f"key{i}")["text"] for i in range(3)] == ["答0", "答1", "答2"]

    @pytest.mark.parametrize(
        "edited", [{"text": 5}, {"finished": 1}, {"seconds": None}, {"words": 3}], ids=str
    )
    def test_answer_of_other_types_is_generated_again(self, ask, tmp_path, caplog, edited):
        AnswerStore(tmp_path / "answers.jsonl").append("key1", {**WHOLE, **edited})
        AnswerStore(tmp_path / "answers.jsonl").append("key0", WHOLE)
        answers, store = ask((i, self.said(f"新{i}")) for i in (0, 1))
        assert [answer.text for answer in answers] == ["答", "新0", "新1"]
        assert f"{store.path}: key1 is not an answer's record; it is generated again" in caplog.text
        assert store.get("key1")["text"] == "新0"

    def test_failed_prompt_is_retried(self, ask):
        first = [self.said("答0"), self.said("", "out of memory"), self.said("答2")]
        answers, store = ask(enumerate(first))
        assert [answer.error for answer in answers] == ["", "out of memory", ""]
        assert store.get("key1") is None
        answers, _ = ask([(0, self.said("答1"))])
        assert [answer.text for answer in answers] == ["答0", "答1", "答2"]

    def test_answers_before_an_engine_dies_are_kept(self, ask, tmp_path):
        def die():
            yield 1, self.said("答1")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask(die())
        assert AnswerStore(tmp_path / "answers.jsonl").get("key1")["text"] == "答1"

    @pytest.mark.parametrize(
        ("answered", "message"), [([1, 1], "prompt 1 twice"), ([1, 0], "2 of 3 prompts")]
    )
    def test_second_or_missing_answer_is_an_error(self, ask, answered, message):
        with pytest.raises(RuntimeError, match=f"the engine answered {message}"):
            ask((i, self.said("答")) for i in answered)
