import pytest

from ja_instruct.engine.answer import Answer
from ja_instruct.pipelines.inference.answer_figures import (
    japanese_share,
    repeated_share,
    report_answers,
)
from ja_instruct.pipelines.inference.answering import find_failure
from ja_instruct.pipelines.inference.parameters import InferenceParameters


@pytest.fixture
def parameters(read_parameters):
    def change(**changes):
        return InferenceParameters(**{**read_parameters("base")["inference"], **changes})

    return change


def said(text, finished=True, error=""):
    return Answer(text, 10, 5, finished=finished, seconds=0.5, error=error)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("…!", 0), ("ＡＢ", 0), ("日本、ひら カタカナー々", 1), ("ｶﾅab", 0.5), ("1月", 0.5)],
)
def test_share_of_japanese_characters(text, share):
    assert japanese_share(text) == share


def test_repeated_share_equals_a_slow_count():
    text = "はい、そうです。" * 3 + "日本の首都は東京です。"
    grams = [text[i : i + 8] for i in range(len(text) - 7)]
    seen = [gram for i, gram in enumerate(grams) if gram in grams[:i]]
    assert repeated_share(text) == pytest.approx(len(seen) / len(grams))
    assert repeated_share("短い") == 0


@pytest.mark.parametrize(
    ("answer", "changes", "reason"),
    [
        (said("東京です。"), {}, ""),
        (said("", error="RuntimeError: out of memory"), {}, "RuntimeError: out of memory"),
        (said(""), {}, "the answer is empty"),
        (said("### 質問\n---"), {}, "the answer holds only banned words"),
        (said("### 質問 東京"), {}, ""),
        # no words at all, but none that is banned: a person may have asked for it
        (said("……"), {}, ""),
        (said("東京", finished=False), {}, ""),
        (
            said("東京", finished=False),
            {"cut_off_is_failure": True},
            "the answer is cut off at 5 tokens",
        ),
    ],
)
def test_what_counts_as_failed(parameters, answer, changes, reason):
    assert find_failure(answer, parameters(**changes)) == reason


def test_report_of_every_kind(parameters):
    answers = [
        said("東京です。"),
        said("## ab", finished=False),
        said("", error="broken"),
        said(""),
    ]
    tasks = [{"task_id": i} for i in "abcd"]
    report = report_answers(tasks, answers, parameters())
    assert report["failed"] == [
        {"task_id": "c", "reason": "broken"},
        {"task_id": "d", "reason": "the answer is empty"},
    ]
    assert report["summary"] == {
        "tasks": 4,
        "new_tokens": 20,
        "seconds": 2.0,
        "tokens_per_second": 10.0,
        "cut_off": 1,
        "empty": 2,
        "failed": 2,
        "prompt_tokens_median": 10.0,
        "prompt_tokens_max": 10,
        "new_tokens_median": 5.0,
        "new_tokens_max": 5,
        # means over the two that say something
        "japanese_share": 0.5,
        "repeated_share": 0.0,
        "banned_word_hits": 3,
    }
    assert report["banned_words"] == {"#": 2, "##": 1}
    assert report["tasks"][1]["banned_words"] == {"#": 2, "##": 1}


def test_report_of_no_tasks(parameters):
    report = report_answers([], [], parameters())
    assert report["tasks"] == report["failed"] == []
    assert set(report["summary"].values()) == {0}
