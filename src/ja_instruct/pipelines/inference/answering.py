"""Answer every prompt once, keep each answer when it is finished, and check the results."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.answer import Answer
from ja_instruct.engine.backends import Backend
from ja_instruct.errors import InputError
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.prompts import PromptParameters

if TYPE_CHECKING:
    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.tables.answer_store import AnswerStore

logger = logging.getLogger(__name__)

_EMPTY = Answer("", 0, 0, finished=False, seconds=0.0)

# Parameters that do not change the answer to a given prompt; all others are assumed to
WITHOUT_EFFECT: dict[str, Any] = {
    "gpu": True,
    "top_k": True,
    "max_query_tokens": True,
    "exclude_same_task": True,
    "example_diversity": True,
    "fit_prompt": True,
    "compare_tasks": True,
    "fail_on_failed_tasks": True,
    "cut_off_is_failure": True,
    # other kinds of weights round differently
    "batching": {"max_num_seqs", "memory_gb", "prefill_chunk_size", "cuda_graphs"},
}


def answer_keys(
    texts: Sequence[str],
    model: ModelDirectory,
    adapter: ModelDirectory | None,
    parameters: InferenceParameters,
    prompts: PromptParameters,
) -> list[str]:
    """Return a key for the answer to each prompt, as a hexadecimal SHA-256.

    It covers the checksums of all files of model and adapter (weights, configuration, tokenizer),
    the generation settings and the prompt.
    """
    settings = {
        **parameters.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "format": prompts.format,
    }
    common = json.dumps(
        [_checksums(model), _checksums(adapter) if adapter else None, settings], sort_keys=True
    ).encode()
    return [
        hashlib.sha256(common + b"\n" + text.encode("utf-8", "surrogatepass")).hexdigest()
        for text in texts
    ]


def _checksums(model: ModelDirectory) -> dict[str, str]:
    # a directory that this project did not write has no recorded checksums
    files = model.provenance.get("files") or model.checksums("hashing the model")
    return {name: str(noted["sha256"]) for name, noted in files.items()}


def weights_of_answers(store: AnswerStore, keys: Sequence[str]) -> str:
    """Return the kind of weights of most stored answers, or an empty string if it is unknown."""
    kept = (_stored(store, key) for key in keys)
    found = Counter(answer.weights for answer in kept if answer is not None and answer.weights)
    return found.most_common(1)[0][0] if found else ""


def _stored(store: AnswerStore, key: str) -> Answer | None:
    """Return a stored answer; None without one, or if it was edited to something else."""
    kept = store.get(key)
    if kept is None:
        return None
    try:
        answer = Answer(**kept)
    except TypeError:
        answer = None
    if answer is None or any(
        type(value) is not type(getattr(_EMPTY, name)) for name, value in vars(answer).items()
    ):
        logger.warning("%s: %s is not an answer's record; it is generated again", store.path, key)
        return None
    return answer


def answer_all(
    tasks: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    store: AnswerStore,
    load: Callable[[], Backend],
    description: str,
) -> list[Answer]:
    """Return an answer for every task, in order; each is stored before the next is generated.

    Answers that the store has under their ``answer_keys`` are reused, and ``load`` is called only
    if some are missing. Empty tasks get no answer. Failed answers are not stored, so that another
    run retries them.

    Raises:
        RuntimeError: The engine answered a prompt twice, or not at all.
    """
    from tqdm import tqdm

    answers: dict[int, Answer] = {}
    for position, (task, key) in enumerate(zip(tasks, keys, strict=True)):
        kept = _stored(store, key)
        if not task["input"].strip():
            answers[position] = replace(_EMPTY, error="the task is empty")
        elif kept is not None:
            answers[position] = kept
    missing = [position for position in range(len(tasks)) if position not in answers]
    found = sum(not answer.error for answer in answers.values())
    if found:
        logger.info("%d of %d answers are already in %s", found, len(tasks), store.path)
    if missing:
        generated = load().generate([tasks[position]["prompt"] for position in missing])
        shown = tqdm(
            generated,
            desc=description,
            total=len(tasks),
            initial=len(answers),
            unit="task",
            disable=None,
        )
        for index, answer in shown:
            position = missing[index]
            if position in answers:
                raise RuntimeError(f"the engine answered prompt {index} twice")
            if not answer.error:
                store.append(keys[position], asdict(answer))
            answers[position] = answer
    if len(answers) != len(tasks):
        raise RuntimeError(f"the engine answered {len(answers)} of {len(tasks)} prompts")
    return [answers[position] for position in range(len(tasks))]


def find_failure(answer: Answer, parameters: InferenceParameters) -> str:
    """Return the failure reason of an answer, or an empty string.

    ``cut_off_is_failure`` decides about an answer that was cut off.
    """
    if answer.error:
        return answer.error
    if not answer.text:
        return "the answer is empty"
    rest = answer.text
    for word in sorted(parameters.bad_words, key=len, reverse=True):
        rest = rest.replace(word.strip(), "")
    if not any(character.isalnum() for character in rest) and rest != answer.text:
        return "the answer holds only banned words"
    if parameters.cut_off_is_failure and not answer.finished:
        return f"the answer is cut off at {answer.new_tokens} tokens"
    return ""


def require_unique_tasks(tasks: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``InputError`` when two records have the same ``task_id``."""
    positions: dict[Any, int] = {}
    for number, task in enumerate(tasks, start=1):
        first = positions.setdefault(task["task_id"], number)
        if first != number:
            raise InputError(
                f"'prompts': records {first} and {number} have the same task_id "
                f"{task['task_id']!r}; every task needs its own. Correct 'tasks', and run again "
                f"with --from-nodes=build_prompts"
            )


def require_all_answered(
    report: Mapping[str, Any], base_answers: int, parameters: InferenceParameters
) -> None:
    """Raise ``InputError`` if tasks have no answer; everything must be saved by then.

    Without ``fail_on_failed_tasks`` the error is a warning.
    """
    failed = report["failed"]
    if not failed:
        return
    listed = "\n".join(f"  - {one['task_id']}: {one['reason']}" for one in failed)
    message = f"{len(failed)} of {report['summary']['tasks']} tasks have no answer:\n{listed}"
    if not parameters.fail_on_failed_tasks:
        logger.warning(message)
        return
    raise InputError(
        f"{message}\nEverything is saved, including the other answers and {base_answers} of the "
        f"base model. 'kedro run --pipeline=inference' retries tasks that raised an error; other "
        f"reasons need other tasks or settings. With inference.fail_on_failed_tasks: false this is "
        f"a warning"
    )
