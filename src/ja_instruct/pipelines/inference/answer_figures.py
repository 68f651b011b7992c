"""The statistics of ``inference_report``."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ja_instruct.engine.answer import Answer
from ja_instruct.pipelines.inference.answering import find_failure
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.text import split_ngrams

# Longer than a Japanese word with its particle, so that only phrases count as repeated
REPETITION_NGRAM_CHARS = 8
# hiragana, katakana with its long vowel sign and half-width forms, Chinese characters, 々 and 〆
JAPANESE = re.compile(r"[\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f\u3005-\u3007\u3400-\u9fff]")


def japanese_share(text: str) -> float:
    """Return the share of letters and digits that are Japanese characters; 0 if there are none.

    >>> japanese_share("東京です。")
    1.0
    >>> japanese_share("東京 is ok")
    0.333...
    """
    letters = [one for one in text if one.isalnum() or JAPANESE.match(one)]
    return sum(1 for one in letters if JAPANESE.match(one)) / len(letters) if letters else 0.0


def repeated_share(text: str) -> float:
    """Return the share of character 8-grams that occurred before in the text.

    Close to 0 for prose, close to 1 for a model that loops.

    >>> repeated_share("日本の首都は東京です。")
    0.0
    >>> repeated_share("はい。" * 20)
    0.943...
    """
    ngrams = split_ngrams(text, REPETITION_NGRAM_CHARS)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def report_answers(
    tasks: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    parameters: InferenceParameters,
) -> dict[str, Any]:
    """Return ``inference_report``: ``summary``, ``failed``, ``banned_words`` and ``tasks``.

    ``summary`` holds numbers: tokens; seconds of generation, including those of earlier runs whose
    answers are reused; tokens per second; numbers of tasks that were cut off, empty or failed;
    median and maximum lengths in tokens; and shares as means over the answers that are not empty.
    ``failed`` has ``task_id`` and ``reason``.
    """
    rows = [_row(task, answer, parameters) for task, answer in zip(tasks, answers, strict=True)]
    new_tokens = sum(row["new_tokens"] for row in rows)
    seconds = sum(answer.seconds for answer in answers)
    not_empty = [row for row in rows if row["characters"]]
    banned: Counter[str] = Counter()
    for row in rows:
        banned.update(row["banned_words"])
    failed = [{"task_id": r["task_id"], "reason": r["failure"]} for r in rows if r["failure"]]
    summary = {
        "tasks": len(rows),
        "new_tokens": new_tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(new_tokens / seconds, 2) if seconds else 0.0,
        "cut_off": sum(not answer.finished and not answer.error for answer in answers),
        "empty": sum(not answer.text for answer in answers),
        "failed": len(failed),
        "prompt_tokens_median": _median(rows, "prompt_tokens"),
        "prompt_tokens_max": max((row["prompt_tokens"] for row in rows), default=0),
        "new_tokens_median": _median(rows, "new_tokens"),
        "new_tokens_max": max((row["new_tokens"] for row in rows), default=0),
        "japanese_share": _mean(not_empty, "japanese_share"),
        "repeated_share": _mean(not_empty, "repeated_share"),
        "banned_word_hits": sum(banned.values()),
    }
    return {"summary": summary, "failed": failed, "banned_words": dict(banned), "tasks": rows}


def _row(
    task: Mapping[str, Any], answer: Answer, parameters: InferenceParameters
) -> dict[str, Any]:
    return {
        "task_id": task["task_id"],
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "characters": len(answer.text),
        "finished": answer.finished,
        "seconds": round(answer.seconds, 2),
        "weights": answer.weights,
        "japanese_share": round(japanese_share(answer.text), 3),
        "repeated_share": round(repeated_share(answer.text), 3),
        "banned_words": {
            word: answer.text.count(word) for word in parameters.bad_words if word in answer.text
        },
        "failure": find_failure(answer, parameters),
    }


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(statistics.median(row[key] for row in rows)) if rows else 0.0


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return round(statistics.fmean(row[key] for row in rows), 3) if rows else 0.0
