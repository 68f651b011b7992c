from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from ja_instruct.datasets import ColbertCheckpointDataset
from ja_instruct.errors import InputError
from ja_instruct.models import ModelDirectory
from ja_instruct.pipelines.inference import nodes
from ja_instruct.pipelines.inference.generation import Generated
from ja_instruct.pipelines.inference.nodes import (
    answer_tasks,
    answer_with_base_model,
    build_prompts,
)
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.prompts import PromptParameters, inference_prompt, training_sample
from ja_instruct.retrieval import retrieve

POOL = Dataset.from_list(
    [
        {"id": f"qa-{i}", "input": question, "output": f"回答{i}です。"}
        for i, question in enumerate(
            [
                "日本の首都はどこですか。",
                "富士山の高さを教えてください。",
                "夏目漱石の代表作を挙げてください。",
                "日本で一番長い川は何ですか。",
                "春の七草をすべて挙げてください。",
            ]
        )
    ]
)
TASKS = Dataset.from_list(
    [
        {"task_id": 7, "input": "日本で一番高い山は何ですか。", "output": "富士山です。"},
        {"task_id": 3, "input": "春の季語を挙げてください。", "output": "桜です。"},
        {"task_id": 5, "input": "首都の人口は?", "output": "約1,400万人です。"},
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
    def test_one_record_a_task_in_order(self, build):
        built = build()
        assert built.column_names == ["task_id", "input", "prompt", "shots", "prompt_tokens"]
        assert built["task_id"][:] == [7, 3, 5]
        assert built["input"][:] == TASKS["input"][:]

    def test_shots_are_the_nearest_worst_first_best_last(self, build, index, checkpoint):
        found = retrieve(index, checkpoint, TASKS["input"][:], 3)
        for record, best_first in zip(build(top_k=3), found, strict=True):
            expected = [
                {
                    "input": POOL[hit.position]["input"],
                    "output": POOL[hit.position]["output"],
                    "score": hit.score,
                }
                for hit in reversed(best_first)
            ]
            assert record["shots"] == expected
            scores = [shot["score"] for shot in record["shots"]]
            assert scores == sorted(scores)
            assert len(set(scores)) == 3

    def test_prompt_is_header_shots_task(self, build, prompts):
        for record in build(top_k=2):
            worst, best = record["shots"]
            assert record["prompt"] == (
                prompts.few_shot_header
                + f"### 質問:\n{worst['input']}\n\n### 回答:\n{worst['output']}\n\n\n"
                + f"### 質問:\n{best['input']}\n\n### 回答:\n{best['output']}\n\n\n"
                + prompts.task_prompt.format(input=record["input"])
            )

    def test_prompt_tokens_are_those_of_the_models_tokenizer(self, build, tiny_nf4):
        tokenizer = tiny_nf4.load_tokenizer()
        for record in build():
            assert record["prompt_tokens"] == len(tokenizer(record["prompt"])["input_ids"])

    def test_reference_answers_stay_out(self, build):
        for task, record in zip(TASKS, build(), strict=True):
            assert task["output"] not in record["prompt"]

    def test_without_shots(self, build, prompts):
        for record in build(top_k=0):
            assert record["shots"] == []
            expected = prompts.few_shot_header + prompts.task_prompt.format(input=record["input"])
            assert record["prompt"] == expected

    @pytest.mark.parametrize("prompt_format", ["recipe", "training_prompt", "chat_template"])
    def test_every_format_has_the_same_shots(self, build, prompts, tiny_nf4, prompt_format):
        tokenizer = tiny_nf4.load_tokenizer()
        texts = prompts.model_copy(update={"format": prompt_format})
        for record, other in zip(build(prompt_format=prompt_format), build(), strict=True):
            assert record["shots"] == other["shots"]
            expected = inference_prompt(texts, record["input"], record["shots"], tokenizer)
            assert record["prompt"] == expected
            assert record["prompt_tokens"] == len(tokenizer(expected)["input_ids"])

    @pytest.mark.parametrize("prompt_format", ["training_prompt", "chat_template"])
    def test_without_shots_the_prompt_is_the_training_samples(
        self, build, prompts, tiny_nf4, prompt_format
    ):
        texts = prompts.model_copy(update={"format": prompt_format})
        for record in build(prompt_format=prompt_format, top_k=0):
            sample = training_sample(texts, record["input"], "答え", tiny_nf4.load_tokenizer())
            assert record["prompt"] == sample[0]

    def test_model_without_chat_template_is_refused(self, build, tiny_gemma2):
        with pytest.raises(InputError, match=r"'chat_template', but .* is missing"):
            build(model=tiny_gemma2, prompt_format="chat_template")

    def test_more_shots_than_pairs_are_all_pairs(self, build):
        assert [len(record["shots"]) for record in build(top_k=20)] == [5, 5, 5]

    def test_prompts_that_leave_no_room_are_named(self, build, caplog):
        lengths = {record["task_id"]: record["prompt_tokens"] for record in build()}
        longest = max(lengths, key=lengths.get)
        room = sorted(lengths.values())[-2]
        caplog.clear()
        build(max_new_tokens=8, max_seq_length=room + 8)
        messages = [record.getMessage() for record in caplog.records]
        (message,) = [message for message in messages if "max_new_tokens" in message]
        assert message.startswith("1 of 3 prompts leave less than max_new_tokens=8")
        assert f"tasks {longest}." in message

    def test_prompts_that_fit_are_not_spoken_of(self, build, caplog):
        build()
        assert not [r for r in caplog.records if "max_new_tokens" in r.getMessage()]

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

    def generate(prompts, model, adapter, parameters):
        calls.append({"prompts": list(prompts), "model": model, "adapter": adapter})
        for number, _ in enumerate(prompts):
            text = f"答え{number}" if number else ""
            yield Generated(text, prompt_tokens=10, new_tokens=4, finished=number == 1, seconds=0.5)

    monkeypatch.setattr(nodes, "generate_answers", generate)
    return calls


PROMPTS = Dataset.from_list(
    [{"task_id": i, "input": f"課題{i}", "prompt": f"問い{i}", "shots": []} for i in (7, 3, 5)]
)


MODEL = ModelDirectory(Path("model"), "owner/model", provenance={"weights_sha256": {"a": "1"}})
ADAPTER = ModelDirectory(
    Path("adapter"), "adapter", provenance={"base": {"weights_sha256": {"a": "1"}}}
)


class TestAnswers:
    def test_adapter_of_another_model_is_refused(self, asked, parameters):
        other = replace(MODEL, provenance={"weights_sha256": {"a": "2"}})
        with pytest.raises(InputError, match="trained on other weights than quantized_model"):
            answer_tasks(PROMPTS, other, ADAPTER, parameters())
        assert not asked

    def test_one_answer_a_task_in_order(self, asked, parameters):
        answers, _ = answer_tasks(PROMPTS, MODEL, ADAPTER, parameters())
        assert answers.to_list() == [
            {"task_id": 7, "input": "課題7", "output": ""},
            {"task_id": 3, "input": "課題3", "output": "答え1"},
            {"task_id": 5, "input": "課題5", "output": "答え2"},
        ]
        prompts = ["問い7", "問い3", "問い5"]
        assert asked == [{"prompts": prompts, "model": MODEL, "adapter": ADAPTER}]

    def test_report(self, asked, parameters):
        _, report = answer_tasks(PROMPTS, MODEL, ADAPTER, parameters())
        assert report["summary"] == {
            "tasks": 3,
            "new_tokens": 12,
            "seconds": 1.5,
            "tokens_per_second": 8.0,
            "cut_off": 2,
            "empty": 1,
        }
        assert [task["task_id"] for task in report["tasks"]] == [7, 3, 5]
        assert [task["finished"] for task in report["tasks"]] == [False, True, False]

    @pytest.mark.parametrize(("wanted", "count"), [(2, 2), (3, 3), (9, 3)])
    def test_base_model_answers_the_first_tasks(self, asked, parameters, wanted, count):
        answers = answer_with_base_model(PROMPTS, "model", parameters(compare_tasks=wanted))
        assert answers["task_id"][:] == [7, 3, 5][:count]
        assert answers.column_names == ["task_id", "input", "output"]
        assert [call["adapter"] for call in asked] == [None]
        assert asked[0]["prompts"] == ["問い7", "問い3", "問い5"][:count]

    def test_base_model_is_not_even_loaded_for_no_tasks(self, asked, parameters):
        answers = answer_with_base_model(PROMPTS, "model", parameters(compare_tasks=0))
        assert len(answers) == 0
        assert asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "unsloth"}, "'unsloth' needs device 'cuda'.*'transformers'"),
        ({"max_new_tokens": 4096}, "leaves no room for a prompt"),
        ({"top_k": -1}, "greater than or equal to 0"),
        ({"repetition_penalty": 0}, "greater than 0"),
    ],
)
def test_unusable_parameters_are_refused(parameters, changes, message):
    with pytest.raises(ValueError, match=message):
        parameters(**changes)
