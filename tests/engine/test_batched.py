"""Prompts answered side by side get the answers that they get alone."""

import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from ja_instruct.engine import batched
from ja_instruct.engine.backends import load_engine
from ja_instruct.engine.batched import Batched
from ja_instruct.pipelines.inference.nodes import answer_tasks
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.tables.answer_store import AnswerStore

QUESTIONS = [
    "日本の首都は",
    "富士山の高さを教えてください。\n\n",
    "春",
    "季節は四つあります。",
    "川の名前を三つ挙げてください。",
    "夏目漱石の代表作を挙げてください。" * 6,
    "首都の人口は?",
]
PROMPTS = Dataset.from_list(
    [{"task_id": i, "input": text, "prompt": f"質問:{text}"} for i, text in enumerate(QUESTIONS)]
)
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def change(read_parameters):
    """A function from changes to parameters, those of ``batching`` among them."""
    section = {**read_parameters("test")["inference"], "max_new_tokens": NEW_TOKENS}
    names = section["batching"].keys()

    def call(**changes):
        batching = {**section["batching"], **{key: changes.pop(key) for key in names & changes}}
        return InferenceParameters(**{**section, "batching": batching, **changes})

    return call


@pytest.fixture
def answer(tiny_nf4, tiny_adapter, texts, tmp_path):
    """A function from parameters to the answers and the report of the node."""

    def call(parameters, **changes):
        store = AnswerStore(tmp_path / f"{time.monotonic_ns()}.jsonl")
        changed = texts.model_copy(update=changes)
        return answer_tasks(PROMPTS, store, tiny_nf4, tiny_adapter, changed, parameters)

    return call


SPOKEN = ("。", "は", "、", "の", "て", "です")


@pytest.mark.parametrize(
    ("decoding", "texts_changes"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.3, "penalty_on": "answer"}, {}),
        ({"penalty_spares_end": True, "bad_words_in": "text"}, {"format": "chat_template"}),
        ({"bad_words": SPOKEN}, {}),
        ({"bad_words": SPOKEN, "bad_words_in": "text", "penalty_on": "answer"}, {}),
    ],
    ids=["recipe", "penalty on the answer", "tuned chat", "banned tokens", "banned text"],
)
def test_batched_answers_equal_one_by_one(answer, change, decoding, texts_changes):
    expected, _ = answer(change(engine="one_by_one", **decoding), **texts_changes)
    few = change(engine="batched", max_num_seqs=3, prefill_chunk_size=16, **decoding)
    found, report = answer(few, **texts_changes)
    assert found.to_list() == expected.to_list()
    assert any(found["output"][:])
    assert report["summary"]["tasks"] == len(QUESTIONS)


def test_int8_cache_is_refused_for_one_by_one(change):
    assert change(kv_cache_dtype="int8").batching.has_int8_cache
    with pytest.raises(
        ValueError, match="kv_cache_dtype 'int8' would have no effect; set engine: bat"
    ):
        change(kv_cache_dtype="int8", engine="one_by_one")


def test_report_counts_the_wall_time_once(answer, change):
    started = time.perf_counter()
    _, report = answer(change(max_num_seqs=3))
    passed = time.perf_counter() - started
    summary = report["summary"]
    assert 0 < summary["seconds"] <= passed
    new_tokens = len(QUESTIONS) * NEW_TOKENS
    assert summary["new_tokens"] == new_tokens
    # rounded to a tenth of a second
    assert summary["tokens_per_second"] >= new_tokens / passed
    assert all(row["seconds"] >= 0 for row in report["tasks"])


@pytest.fixture
def engine(tiny_nf4, change):
    def make(**changes):
        return load_engine(tiny_nf4, None, change(**changes))

    return make


def test_seconds_add_up_to_the_wall_time(engine):
    side_by_side = engine(max_num_seqs=2)
    started = time.perf_counter()
    seconds, ends = 0.0, []
    for _, one in side_by_side.generate(QUESTIONS):
        seconds += one.seconds
        ends.append(time.perf_counter() - started)
    assert seconds == pytest.approx(ends[-1], rel=0.3)
    # as they end, not all at last
    assert ends[0] < 0.7 * ends[-1]


def test_no_prompts(engine):
    assert list(engine().generate([])) == []


def test_prompt_without_tokens_fails_alone(engine):
    side_by_side = engine()
    side_by_side._tokenizer.add_bos_token = False
    answers = dict(side_by_side.generate(["春", "", "川"]))
    assert [answers[i].error for i in range(3)] == ["", "ValueError: the prompt has no tokens", ""]


class Memory:
    """A device that holds a few sequences; its engines answer with a prompt's last token twice."""

    def __init__(self, holds, raises=torch.OutOfMemoryError, before=1, broken=()):
        self.holds, self.raises, self.before, self.broken = holds, raises, before, set(broken)
        self.tried = []

    def build(self, max_num_seqs, length):
        self.tried.append((max_num_seqs, length))
        return SimpleNamespace(generate=partial(self.generate, max_num_seqs > self.holds))

    def generate(self, is_too_large, prompts, max_new_tokens, find_banned):
        for position, ids in enumerate(prompts):
            if (is_too_large and position == self.before) or ids[-1] in self.broken:
                raise self.raises("CUDA out of memory. Tried to allocate 20 GiB\nmore")
            yield position, [ids[-1]] * 2


NUMBERED = [f"春{number}" for number in range(20)]


class TestOutOfMemory:
    @pytest.fixture
    def run(self, engine, monkeypatch):
        def call(memory, prompts=NUMBERED):
            one = engine(max_num_seqs=16)
            monkeypatch.setattr(one, "_build", memory.build)
            encoded = [one._tokenizer(prompt)["input_ids"] for prompt in prompts]
            found = list(one.generate(prompts))
            # every prompt once
            assert sorted(position for position, _ in found) == list(range(len(prompts)))
            answers = dict(found)
            for position, ids in enumerate(encoded):
                if not answers[position].error:
                    assert answers[position].text == one._tokenizer.decode([ids[-1]] * 2).strip()
                    assert answers[position].prompt_tokens == len(ids)
            return answers

        return call

    def test_batch_shrinks_for_the_remaining_prompts(self, run, caplog):
        memory = Memory(holds=5)
        answers = run(memory)
        assert [max_num_seqs for max_num_seqs, _ in memory.tried] == [16, 12, 9, 6, 4]
        assert not any(one.error for one in answers.values())
        assert (
            "answering 20 prompts in batches of 16 failed, 19 of them are left: CUDA" in caplog.text
        )

    def test_batch_is_not_larger_than_the_remaining_prompts(self, run):
        memory = Memory(holds=1, before=3)
        run(memory, NUMBERED[:8])
        assert [max_num_seqs for max_num_seqs, _ in memory.tried] == [8, 3, 1]

    def test_prompt_that_never_fits_fails_alone(self, run, engine, caplog):
        tokenizer = engine()._tokenizer
        broken = tokenizer("春3")["input_ids"][-1]
        memory = Memory(holds=99, broken=[broken])
        prompts = [*NUMBERED[:6], "夏目漱石" * 5]
        answers = run(memory, prompts)
        assert {i: one.error for i, one in answers.items() if one.error} == {
            3: "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
        }
        assert "generating the answer of prompt 3 failed" in caplog.text
        # no longer as long as the longest of all
        lengths = [length for max_num_seqs, length in memory.tried if max_num_seqs == 1]
        assert min(lengths) == len(tokenizer("春3")["input_ids"]) + NEW_TOKENS

    @pytest.mark.parametrize("raises", [RuntimeError, ValueError, IndexError])
    def test_other_errors_belong_to_their_prompt(self, run, engine, raises, monkeypatch):
        broken = engine()._tokenizer("春3")["input_ids"][-1]
        monkeypatch.setattr(batched, "_is_out_of_memory", lambda error: False)
        memory = Memory(holds=99, raises=raises, broken=[broken])
        answers = run(memory, NUMBERED[:6])
        assert [i for i, one in answers.items() if one.error] == [3]
        # one after the other at once: a smaller batch would not help
        assert [max_num_seqs for max_num_seqs, _ in memory.tried] == [6, 1, 1, 1]

    @pytest.mark.parametrize(
        ("error", "is_memory"),
        [
            (torch.OutOfMemoryError("any"), True),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
            (RuntimeError("shapes cannot be multiplied"), False),
            (IndexError("index out of range"), False),
        ],
    )
    def test_what_is_out_of_memory(self, error, is_memory):
        assert batched._is_out_of_memory(error) is is_memory


class TestBatchSize:
    @pytest.fixture
    def count(self, engine, monkeypatch):
        def call(prompts, free=10**12, **changes):
            monkeypatch.setattr(batched, "free_bytes", lambda device, limit: free)
            one = engine(**changes)
            one._weights = "float32"
            return one._choose_sizes(prompts, 100)

        return call

    @pytest.mark.parametrize(
        ("prompts", "most", "max_num_seqs"),
        [(n, None, size) for n, size in ((1, 1), (8, 8), (9, 16), (16, 16), (20, 20), (100, 32))]
        + [(100, 50, 50), (10, 50, 10)],
    )
    def test_on_a_cpu(self, count, prompts, most, max_num_seqs):
        assert count(prompts, max_num_seqs=most) == max_num_seqs

    def test_memory_limits_the_batch(self, count, engine, caplog, monkeypatch):
        sizes = batched.EngineSizes.of_model(engine()._model)
        free = int((sizes.working_bytes(1024, 100) + 3.5 * sizes.sequence_bytes(100)) / 0.95)
        assert count(100, free=free) == 3
        assert not [one for one in caplog.records if one.levelname == "WARNING"]
        assert count(100, free=free, max_num_seqs=7) == 3
        assert "memory holds an estimated 3 sequences of 100 tokens, not 7" in caplog.text

    def test_batch_of_one_is_always_tried(self, count, caplog):
        assert count(100, free=0) == 1
        assert "memory holds an estimated 0 sequences" in caplog.text

    @pytest.mark.parametrize(
        ("memory_gb", "node_gb", "limit"),
        [(None, None, None), (20.0, None, 20.0), (20.0, 40.0, 20.0), (None, 40.0, 39.4)],
    )
    def test_memory_limits(self, engine, monkeypatch, memory_gb, node_gb, limit):
        found = []
        monkeypatch.setattr(batched, "free_bytes", lambda device, limit: found.append(limit) or 0)
        gpu = {"devices": None, "memory_gb": node_gb, "disk_gb": None}
        engine(memory_gb=memory_gb, gpu=gpu)._free_bytes()
        assert found == [limit if limit is None else pytest.approx(limit)]


class TestWeights:
    """Of a model in 4 bits, here computed by bitsandbytes on the CPU."""

    @pytest.fixture
    def take_up(self, tiny_nf4, tiny_adapter, change, monkeypatch):
        def call(free, prompts=4, before="", **changes):
            monkeypatch.setattr(batched, "free_bytes", lambda device, limit: free)
            model = tiny_nf4.load_model(device_map="cpu", dtype=torch.bfloat16)
            parameters = change(**changes)
            one = Batched(
                model,
                tiny_nf4.load_tokenizer(),
                parameters,
                adapter=tiny_adapter,
                weights_before=before,
            )
            answers = dict(one.generate(QUESTIONS[:prompts]))
            assert not any(answer.error for answer in answers.values())
            assert {answer.weights for answer in answers.values()} == {one._weights}
            return one._weights, one

        return call

    @pytest.mark.parametrize("weights", ["nf4", "bf16"])
    def test_chosen_weights_are_used(self, take_up, weights):
        found, one = take_up(10**12, weights=weights)
        assert found == weights
        names = {name for name, _ in one._model.named_parameters()}
        assert any("lora_" in name for name in names) is (weights == "nf4")

    @pytest.fixture
    def bytes_in_bf16(self, tiny_nf4):
        """A function from a number of sequences to the memory that they need with bf16 weights."""
        model = tiny_nf4.load_model(device_map="cpu", dtype=torch.bfloat16)
        sizes = batched.EngineSizes.of_model(model)
        encoded = tiny_nf4.load_tokenizer()(QUESTIONS[:4])["input_ids"]
        length = NEW_TOKENS + max(map(len, encoded))
        grown, _ = batched.bytes_of_merging(model, None)
        working, one = sizes.working_bytes(1024, length), sizes.sequence_bytes(length)
        return lambda sequences: int(grown + (working + sequences * one) / 0.95)

    def test_bf16_if_it_leaves_room(self, take_up, bytes_in_bf16):
        assert take_up(bytes_in_bf16(4.5))[0] == "bf16"
        assert take_up(bytes_in_bf16(3.5))[0] == "nf4"
        # a smaller batch is wanted
        assert take_up(bytes_in_bf16(3.5), max_num_seqs=3)[0] == "bf16"

    @pytest.mark.parametrize(
        ("prompts", "in_16_bits", "in_4_bits", "max_num_seqs", "expected"),
        [
            # rounds: 2 with either, 4 or 2, 1 with either, 19 or 16 as no more than 64 are of use
            (100, 55, 80, None, "bf16"),
            (100, 32, 77, None, "nf4"),
            (10, 16, 40, None, "bf16"),
            (1000, 55, 80, None, "nf4"),
            (100, 16, 77, 12, "bf16"),
            (4, 0, 2, None, "nf4"),
            (4, 0, 0, None, "nf4"),
            (4, 1, 0, None, "bf16"),
        ],
    )
    def test_auto_chooses_fewer_batches(
        self, engine, monkeypatch, prompts, in_16_bits, in_4_bits, max_num_seqs, expected
    ):
        one = engine(max_num_seqs=max_num_seqs)
        monkeypatch.setattr(one, "_num_seqs_in_bf16", lambda length: in_16_bits)
        monkeypatch.setattr(one, "_fit", lambda free, length: (in_4_bits, 1024))
        assert one._choose_weights(prompts, 4096) == expected

    def test_auto_keeps_the_weights_of_earlier_answers(self, take_up, bytes_in_bf16, caplog):
        assert take_up(10**12, before="nf4")[0] == "nf4"
        assert take_up(10**12, before="nf4", weights="bf16")[0] == "bf16"
        for_one = bytes_in_bf16(1) + 1000
        assert take_up(for_one)[0] == "nf4"
        assert take_up(for_one, before="bf16")[0] == "bf16"
        assert "earlier answers" not in caplog.text
        assert take_up(bytes_in_bf16(0), before="bf16")[0] == "nf4"
        assert "earlier answers were given with bf16 weights" in caplog.text

    def test_weights_are_chosen_once(self, take_up):
        weights, one = take_up(10**12)
        model = one._model
        list(one.generate(QUESTIONS[:1]))
        assert one._model is model
        assert one._weights == weights
