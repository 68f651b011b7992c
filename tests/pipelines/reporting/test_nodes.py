from datasets import Dataset
from html_page import HOSTILE, Page

from ja_instruct.pipelines.reporting.nodes import build_run_report
from ja_instruct.pipelines.sft.nodes import plot_loss

HISTORY = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.0}]


def tasks(text="課題"):
    return Dataset.from_list(
        [{"task_id": i, "input": f"{text}{i}", "output": f"{text}の参考解答{i}"} for i in range(3)]
    )


def answers(text, count=3):
    return Dataset.from_list(
        [{"task_id": i, "input": f"課題{i}", "output": f"{text}{i}"} for i in range(count)]
    )


def build(**changes):
    inputs = {
        "filter_report": {
            "summary": {"read": 1234567, "kept": 206},
            "rejected_by_first_rule": {"language": 9, "banned_substring": 80},
        },
        "quantization_report": {
            "summary": {"source_mb": 0.8},
            "source": {"model_id": "google/gemma-2-27b", "revision": "0123abc"},
        },
        "train_metrics": {
            "summary": {
                "steps": 40,
                "train_loss": 1.75,
                "eval_samples": 20,
                "eval_loss_before": 2.3456,
                "eval_loss_after": 1.25,
            }
        },
        "loss_plot": plot_loss(HISTORY),
        "rag_index_report": {"summary": {"questions": 111}},
        "inference_report": {"summary": {"tasks": 3}},
        "tasks": tasks(),
        "base_answers": answers("学習前の回答", count=2),
        "answers": answers("学習後の回答"),
        **changes,
    }
    return build_run_report(**inputs)


def test_shows_the_loss_before_and_after():
    text = Page(build()).text
    assert "Evaluation loss 2.346 → 1.250" in text
    assert "20 held-out pairs, before and after 40 steps" in text


def test_shows_the_training_loss_if_nothing_was_held_out():
    text = Page(build(train_metrics={"summary": {"steps": 40, "train_loss": 1.75}})).text
    assert "Training loss 1.750" in text
    assert "Evaluation loss" not in text


def test_figures_that_were_not_finite():
    text = Page(build(train_metrics={"summary": {"steps": 0, "train_loss": None}})).text
    assert "Training loss –" in text


def test_shows_every_stage_and_the_rules_by_count():
    text = Page(build()).text
    for stage in ("data_filtering", "quantization", "sft", "rag_index", "inference"):
        assert stage in text
    assert "1,234,567" in text
    assert text.index("banned_substring") < text.index("language")


def test_shows_answers_before_and_after_and_the_reference():
    text = Page(build()).text
    for number in range(2):
        places = [
            text.index(f"{what}{number}")
            for what in ("課題", "学習前の回答", "学習後の回答", "課題の参考解答")
        ]
        assert places == sorted(places)
    assert "学習後の回答2" not in text


def test_without_base_answers_there_is_no_comparison():
    text = Page(build(base_answers=Dataset.from_list([]))).text
    assert "Answers before and after" not in text
    assert "学習後の回答" not in text


def test_empty_answers_and_tasks_without_reference():
    page = Page(
        build(
            tasks=tasks().remove_columns("output"),
            answers=Dataset.from_list(
                [{"task_id": i, "input": f"課題{i}", "output": ""} for i in range(3)]
            ),
        )
    )
    assert page.text.count("(empty)") == 2
    assert "参考解答 · reference" not in page.text


def test_page_is_self_contained_and_shows_hostile_text_without_executing_it():
    plain = Page(build())
    plain.assert_self_contained()
    hostile = Page(
        build(
            tasks=tasks(HOSTILE),
            base_answers=Dataset.from_list(
                [{"task_id": 0, "input": HOSTILE, "output": f"前{HOSTILE}"}]
            ),
            answers=answers(f"後{HOSTILE}"),
            quantization_report={
                "summary": {HOSTILE: 1},
                "source": {"model_id": HOSTILE, "revision": HOSTILE},
            },
            filter_report={"summary": {}, "rejected_by_first_rule": {HOSTILE: 1}},
        )
    )
    hostile.assert_as_safe_as(plain)
    for text in (f"{HOSTILE}の参考解答0", f"前{HOSTILE}", f"後{HOSTILE}0", HOSTILE):
        assert text in hostile.text
