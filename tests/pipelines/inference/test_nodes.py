from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from ja_instruct.control_tokens import unmark
from ja_instruct.datasets import ColbertCheckpointDataset
from ja_instruct.engine.answer import Answer
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.inference import nodes
from ja_instruct.pipelines.inference.nodes import (
    answer_tasks,
    answer_with_base_model,
    build_prompts,
)
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.prompts import PromptBuilder, PromptParameters
from ja_instruct.retrieval.index import retrieve
from ja_instruct.tables.answer_store import AnswerStore

QUESTIONS = (
    "日本の首都はどこですか。",
    "富士山の高さを教えてください。",
    "夏目漱石の代表作を挙げてください。",
    "日本で一番長い川は何ですか。",
    "春の七草をすべて挙げてください。",
)
POOL = Dataset.from_list(
    [{"id": f"qa-{i}", "input": one, "output": f"回答{i}です。"} for i, one in enumerate(QUESTIONS)]
)
TASKS = Dataset.from_list(
    [
        {"task_id": 7, "input": "日本で一番高い山は何ですか。"},
        {"task_id": 3, "input": "春の季語を挙げてください。"},
        {"task_id": 5, "input": "首都の人口は?"},
    ]
)


@pytest.fixture(scope="module")
def prompts(read_parameters):
    return PromptParameters(**read_parameters("base")["prompts"])


@pytest.fixture
def parameters(read_parameters):
    def change(**changes):
        return InferenceParameters(**{**read_parameters("test")["inference"], **changes})

    return change


@pytest.fixture(scope="module")
def checkpoint(project):
    return ColbertCheckpointDataset(filepath=project / "data/06_models/test/tiny-colbert").load()


@pytest.fixture(scope="module")
def index(checkpoint, read_parameters):
    section = RagIndexParameters(**read_parameters("base")["rag_index"])
    return encode_pool(POOL, checkpoint, section)[0]


@pytest.fixture
def build(index, checkpoint, tiny_nf4, prompts, parameters):
    def call(tasks=TASKS, pool=POOL, model=tiny_nf4, prompt_format="recipe", **changes):
        texts = prompts.model_copy(update={"format": prompt_format})
        return build_prompts(tasks, pool, index, checkpoint, model, texts, parameters(**changes))

    return call


class TestBuildPrompts:
    def test_examples_of_each_task_are_the_most_similar_worst_first(self, build, index, checkpoint):
        found = retrieve(index, checkpoint, TASKS["input"][:], 3)
        built = build(top_k=3)
        columns = ["task_id", "input", "prompt", "shots", "prompt_tokens", "shots_dropped"]
        assert built.column_names == columns
        assert built["task_id"][:] == [7, 3, 5]
        assert built["input"][:] == TASKS["input"][:]
        for record, best_first in zip(built, found, strict=True):
            assert record["shots"] == [
                {
                    **{key: POOL[result.position][key] for key in ("input", "output")},
                    "score": result.score,
                }
                for result in reversed(best_first)
            ]
            scores = [shot["score"] for shot in record["shots"]]
            assert scores == sorted(scores)
            assert len(set(scores)) == 3

    @pytest.mark.parametrize("count", [0, 3])
    @pytest.mark.parametrize("prompt_format", ["recipe", "training_prompt", "chat_template"])
    def test_every_format_has_the_same_examples(
        self, build, prompts, tiny_nf4, prompt_format, count
    ):
        tokenizer = tiny_nf4.load_tokenizer()
        texts = prompts.model_copy(update={"format": prompt_format})
        built = build(prompt_format=prompt_format, top_k=count)
        for record, other in zip(built, build(top_k=count), strict=True):
            assert len(record["shots"]) == count
            assert record["shots"] == other["shots"]
            expected = PromptBuilder(texts, tokenizer).prompt(record["input"], record["shots"])
            assert record["prompt"] == expected
            assert record["prompt_tokens"] == len(tokenizer(expected)["input_ids"])

    def test_task_that_spells_a_token_is_counted_as_text(self, build, tiny_nf4):
        """So that fit_prompt leaves enough room for it."""
        tokenizer = tiny_nf4.load_tokenizer()
        spelled = "<start_of_turn>と<eos>とは?"
        (record,) = build(Dataset.from_list([{"task_id": 1, "input": spelled}]), top_k=1)
        prompt = unmark(record["prompt"])
        assert spelled in prompt
        assert record["input"] == spelled
        as_text = tokenizer(prompt, split_special_tokens=True)["input_ids"]
        assert record["prompt_tokens"] == len(as_text) > len(tokenizer(prompt)["input_ids"])

    def test_model_without_chat_template_is_refused(self, build, tiny_gemma2):
        with pytest.raises(InputError, match=r"'chat_template', but .* is missing"):
            build(model=tiny_gemma2, prompt_format="chat_template")

    def test_more_examples_than_pairs_are_all_pairs(self, build):
        assert [len(record["shots"]) for record in build(top_k=20)] == [5, 5, 5]

    def test_prompts_that_leave_no_room_are_named(self, build, caplog):
        def messages():
            logged = [record.getMessage() for record in caplog.records]
            return [message for message in logged if "max_new_tokens" in message]

        lengths = {record["task_id"]: record["prompt_tokens"] for record in build()}
        assert not messages()
        longest = max(lengths, key=lengths.get)
        room = sorted(lengths.values())[-2]
        build(max_new_tokens=8, max_seq_length=room + 8)
        (message,) = messages()
        assert message.startswith("1 of 3 prompts leave less than max_new_tokens=8")
        assert f"tasks {longest}." in message

    def test_least_similar_examples_are_dropped_until_it_fits(
        self, build, prompts, tiny_nf4, caplog
    ):
        tokenizer = tiny_nf4.load_tokenizer()
        caplog.set_level("INFO")
        whole = build(top_k=5)
        room = sorted(whole["prompt_tokens"][:])[0] - 1
        fitted = build(top_k=5, max_new_tokens=8, max_seq_length=room + 8, fit_prompt=True)
        for record, other in zip(fitted, whole, strict=True):
            dropped = record["shots_dropped"]
            assert 0 < dropped < 5
            assert record["shots"] == other["shots"][dropped:]
            prompt, longer = (
                PromptBuilder(prompts, tokenizer).prompt(record["input"], other["shots"][first:])
                for first in (dropped, dropped - 1)
            )
            assert record["prompt"] == prompt
            # one more would not have fitted
            tokens, more = (len(tokenizer(text)["input_ids"]) for text in (prompt, longer))
            assert record["prompt_tokens"] == tokens <= room < more
        assert whole["shots_dropped"][:] == [0, 0, 0]
        dropped = fitted["shots_dropped"][:]
        assert f"3 of 3 prompts dropped {sum(dropped)} examples in total" in caplog.text
        assert f"7 (-{dropped[0]})" in caplog.text

    def test_task_that_does_not_fit_alone_is_named(self, build):
        alone = {one["task_id"]: one["prompt_tokens"] for one in build(top_k=0)}
        longest = max(alone, key=alone.get)
        room = alone[longest] - 1
        with pytest.raises(InputError, match=rf"{longest} \({alone[longest]} tokens\).*Shorten"):
            build(max_new_tokens=8, max_seq_length=room + 8, fit_prompt=True)

    def test_pair_that_asks_the_task_is_not_an_example(self, build):
        asked = "富士山の高さを 教えてください！"
        tasks = Dataset.from_list([{"task_id": 1, "input": asked}, *TASKS.to_list()])
        (plain, *_), (without, *others) = build(tasks), build(tasks, exclude_same_task=True)
        assert plain["shots"][-1]["input"] == POOL[1]["input"]
        assert POOL[1]["input"] not in [shot["input"] for shot in without["shots"]]
        # the next best takes its place
        assert without["shots"][-2:] == plain["shots"][:2]
        assert len(without["shots"]) == 3
        diverse, *_ = build(tasks, exclude_same_task=True, example_diversity=0.5)
        assert POOL[1]["input"] not in [shot["input"] for shot in diverse["shots"]]
        assert len(diverse["shots"]) == 3
        assert others == build().to_list()

    def test_diverse_examples_are_in_the_order_of_their_scores(self, build):
        nearest = build(top_k=2)
        assert build(top_k=2, example_diversity=0.0).to_list() == nearest.to_list()
        diverse = build(top_k=2, example_diversity=1.0)
        assert diverse.to_list() != nearest.to_list()
        for record, other in zip(diverse, nearest, strict=True):
            assert record["shots"][-1] == other["shots"][-1]
            assert record["shots"][0]["score"] < record["shots"][1]["score"]

    def test_index_of_another_pool_is_refused(self, build):
        other = POOL.select([4, 3, 2, 1, 0])
        with pytest.raises(InputError, match=r"--pipelines?=rag_index"):
            build(pool=other)

    @pytest.mark.parametrize(
        ("name", "data"),
        [("tasks", TASKS.remove_columns("task_id")), ("pool", POOL.remove_columns("output"))],
    )
    def test_missing_column_is_named(self, build, name, data):
        with pytest.raises(InputError, match=r"lacks the column.s. (task_id|output)"):
            build(**{name: data})


@pytest.fixture
def asked(monkeypatch):
    """A model that answers each prompt by its number; what it was asked is returned."""
    calls = []

    class Backend:
        def generate(self, prompts):
            calls[-1]["prompts"] = list(prompts)
            # the last first: an engine may finish them in any order
            for number in reversed(range(len(prompts))):
                text = f"答え{number}" if number else ""
                finished = number == 1
                yield number, Answer(text, 10, 4, finished=finished, seconds=0.5)

    def load(model, adapter, parameters, *, stop_at_end_of_turn, weights_before):
        calls.append({"model": model, "adapter": adapter, "weights_before": weights_before})
        return Backend()

    monkeypatch.setattr(nodes, "load_engine", load)
    return calls


@pytest.fixture
def store(tmp_path):
    return AnswerStore(tmp_path / "answer_store.jsonl")


PROMPTS = Dataset.from_list(
    [{"task_id": i, "input": f"課題{i}", "prompt": f"問い{i}", "shots": []} for i in (7, 3, 5)]
)


NOTED = {"weights_sha256": {"a": "1"}, "files": {"a": {"sha256": "1"}}}
MODEL = ModelDirectory(Path("model"), "owner/model", provenance=NOTED)
ADAPTER = replace(MODEL, path=Path("adapter"), provenance={**NOTED, "base": NOTED})


class TestAnswers:
    @pytest.fixture
    def answer(self, asked, store, prompts, parameters):
        def call(tasks=PROMPTS, model=MODEL, adapter=ADAPTER, **changes):
            return answer_tasks(tasks, store, model, adapter, prompts, parameters(**changes))

        return call

    @pytest.fixture
    def answer_base(self, asked, store, prompts, parameters):
        def call(**changes):
            return answer_with_base_model(PROMPTS, store, MODEL, prompts, parameters(**changes))

        return call

    def test_adapter_of_another_model_is_refused(self, answer, asked):
        other = replace(MODEL, provenance={"weights_sha256": {"a": "2"}})
        with pytest.raises(InputError, match="trained on other weights than quantized_model"):
            answer(model=other)
        assert not asked

    def test_one_answer_per_task_in_order(self, answer, asked):
        answers, _ = answer()
        assert answers.to_list() == [
            {"task_id": 7, "input": "課題7", "output": ""},
            {"task_id": 3, "input": "課題3", "output": "答え1"},
            {"task_id": 5, "input": "課題5", "output": "答え2"},
        ]
        prompts = ["問い7", "問い3", "問い5"]
        assert asked == [
            {"prompts": prompts, "model": MODEL, "adapter": ADAPTER, "weights_before": ""}
        ]

    def test_report(self, answer, caplog):
        _, report = answer()
        assert report["summary"]["new_tokens"] == 12
        assert report["failed"] == [{"task_id": 7, "reason": "the answer is empty"}]
        assert [task["task_id"] for task in report["tasks"]] == [7, 3, 5]
        assert [task["finished"] for task in report["tasks"]] == [False, True, False]
        assert "2 of 3 answers were cut off at max_new_tokens; tasks 7, 5" in caplog.text
        _, report = answer(cut_off_is_failure=True)
        assert [one["task_id"] for one in report["failed"]] == [7, 5]

    def test_answers_that_are_stored_are_not_generated_again(self, answer, asked):
        first = answer()
        again = answer()
        assert again[0].to_list() == first[0].to_list()
        assert again[1] == first[1]
        assert len(asked) == 1
        answer(repetition_penalty=1.2)
        assert len(asked) == 2

    def test_only_new_tasks_are_generated(self, answer, asked):
        answer()
        tasks = PROMPTS.to_list()
        tasks.insert(1, {"task_id": 9, "input": "新しい", "prompt": "問い9", "shots": []})
        answers, _ = answer(Dataset.from_list(tasks))
        assert asked[1]["prompts"] == ["問い9"]
        assert answers["task_id"][:] == [7, 9, 3, 5]
        assert answers["output"][2:] == ["答え1", "答え2"]

    def test_empty_task_is_not_generated(self, answer, asked):
        tasks = PROMPTS.to_list()
        tasks[1]["input"] = " \n"
        answers, report = answer(Dataset.from_list(tasks))
        assert asked[0]["prompts"] == ["問い7", "問い5"]
        assert answers["output"][:] == ["", "", "答え1"]
        assert report["failed"][1] == {"task_id": 3, "reason": "the task is empty"}

    def test_two_tasks_of_one_id_are_refused(self, answer, asked):
        tasks = PROMPTS.to_list()
        tasks[2]["task_id"] = 7
        with pytest.raises(InputError, match="records 1 and 3 have the same task_id 7"):
            answer(Dataset.from_list(tasks))
        assert not asked

    @pytest.mark.parametrize(("wanted", "count"), [(2, 2), (3, 3), (9, 3)])
    def test_base_model_answers_the_first_tasks(self, answer_base, asked, wanted, count, caplog):
        answers = answer_base(compare_tasks=wanted)
        assert answers["task_id"][:] == [7, 3, 5][:count]
        assert answers.column_names == ["task_id", "input", "output"]
        assert [call["adapter"] for call in asked] == [None]
        assert asked[0]["prompts"] == ["問い7", "問い3", "問い5"][:count]
        assert f"failed in 1 of {count} tasks: 7 (the answer is empty)" in caplog.text

    def test_base_model_does_not_reuse_the_tuned_models_answers(self, answer, answer_base, asked):
        answer()
        assert len(answer_base(compare_tasks=0)) == 0
        assert len(asked) == 1
        answer_base(compare_tasks=3)
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "unsloth"}, "'unsloth' needs device 'cuda'.*'transformers'"),
        ({"backend": "unsloth", "device": "cuda"}, "with engine 'batched'; set engine: one_by"),
        ({"max_new_tokens": 4096}, "leaves no room for a prompt"),
        ({"top_k": -1}, "greater than or equal to 0"),
        ({"repetition_penalty": 0}, "greater than 0"),
        ({"example_diversity": 1.5}, "less than or equal to 1"),
        ({"bad_words": ["質問", ""]}, "bad_words must not contain an empty"),
    ],
)
def test_unusable_parameters_are_refused(parameters, changes, message):
    with pytest.raises(ValueError, match=message):
        parameters(**changes)
