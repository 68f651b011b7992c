"""Nodes of ``inference``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ja_instruct.config import parameter_names
from ja_instruct.engine.answer import Answer
from ja_instruct.engine.backends import load_engine
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import gpu_resources
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.inference.answer_figures import report_answers
from ja_instruct.pipelines.inference.answering import (
    WITHOUT_EFFECT,
    answer_all,
    answer_keys,
    find_failure,
    require_unique_tasks,
    weights_of_answers,
)
from ja_instruct.pipelines.inference.few_shot_examples import find_examples, fit_examples
from ja_instruct.pipelines.inference.gpu_resources import estimate_inference
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.prompts import PromptBuilder, PromptParameters
from ja_instruct.retrieval.index import require_same_pool
from ja_instruct.tables.columns import as_dataset, require_columns
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from datasets import Dataset

    from ja_instruct.retrieval.index import ColbertCheckpoint, RetrievalIndex
    from ja_instruct.tables.answer_store import AnswerStore
else:  # Kedro resolves the hints of a node; these libraries take seconds to import
    Dataset = AnswerStore = ColbertCheckpoint = RetrievalIndex = Any

logger = logging.getLogger(__name__)

NAMED_IN_MESSAGES = 10
# of an answer: its prompt has the texts and examples
WITHOUT_EFFECT_ON_ANSWERS = (
    "answer_store",
    "params:prompts",
    "params:inference.device",
    *parameter_names("inference", WITHOUT_EFFECT),
)


@unaffected_by(
    "params:inference",
    but=(
        "params:inference.top_k",
        "params:inference.max_query_tokens",
        "params:inference.exclude_same_task",
        "params:inference.example_diversity",
        "params:inference.fit_prompt",
        "params:inference.max_seq_length",
        "params:inference.max_new_tokens",
    ),
)
def build_prompts(
    tasks: Dataset,
    few_shot_pool: Dataset,
    retrieval_index: RetrievalIndex,
    retriever_checkpoint: ColbertCheckpoint,
    quantized_model: ModelDirectory,
    prompts: PromptParameters,
    parameters: InferenceParameters,
) -> Dataset:
    """Return the model's prompts: one record per task, in order.

    The ``top_k`` pairs of the pool that are most similar to the task become its few-shot examples,
    worst first, in the format ``prompts.format``. ``exclude_same_task`` and ``example_diversity``
    change which pairs are chosen, ``fit_prompt`` how many.

    Returns:
        ``task_id``, ``input``, ``prompt`` (without the BOS that tokenization adds, and with a mark
        in texts that spell control tokens; see ``ControlTokens``), ``shots`` (the examples'
        ``input``, ``output`` and ``score`` in prompt order), ``prompt_tokens`` and
        ``shots_dropped``, the number of examples that did not fit.

    Raises:
        InputError: A column is missing, the index is of another pool, the tokenizer lacks what the
            format needs, or with ``fit_prompt`` a task does not fit even without examples.
    """
    from datasets import Dataset

    tasks = as_dataset(tasks, "tasks")
    few_shot_pool = as_dataset(few_shot_pool, "few_shot_pool")
    require_columns(tasks, ("task_id", "input"), "tasks")
    require_columns(few_shot_pool, ("input", "output"), "few_shot_pool")
    require_same_pool(retrieval_index, list(few_shot_pool["input"]))
    found = find_examples(
        list(tasks["input"]),
        list(few_shot_pool["input"]),
        retrieval_index,
        retriever_checkpoint,
        parameters,
    )
    builder = PromptBuilder(prompts, quantized_model.load_tokenizer())
    room = parameters.max_seq_length - parameters.max_new_tokens
    records = []
    for task, best_first in zip(tasks, found, strict=True):
        examples: Sequence[dict[str, Any]] = [
            {
                **{key: few_shot_pool[result.position][key] for key in ("input", "output")},
                "score": result.score,
            }
            for result in reversed(best_first)
        ]
        examples, prompt, tokens = fit_examples(
            examples,
            partial(builder.prompt, task["input"]),
            builder.control.count,
            room if parameters.fit_prompt else None,
        )
        records.append(
            {
                "task_id": task["task_id"],
                "input": task["input"],
                "prompt": prompt,
                "shots": examples,
                "prompt_tokens": tokens,
                "shots_dropped": len(best_first) - len(examples),
            }
        )
    _check_room(records, parameters)
    return Dataset.from_list(records)


def _check_room(records: list[dict[str, Any]], parameters: InferenceParameters) -> None:
    """Log how many examples were dropped, or warn of prompts that leave too little room.

    Raises:
        InputError: A task does not fit although ``fit_prompt`` dropped all its examples.
    """
    room = parameters.max_seq_length - parameters.max_new_tokens
    long = [record for record in records if record["prompt_tokens"] > room]
    if long and parameters.fit_prompt:
        raise InputError(
            f"{len(long)} of {len(records)} tasks leave less than max_new_tokens="
            f"{parameters.max_new_tokens} of max_seq_length={parameters.max_seq_length} even "
            f"without examples: "
            + _listed([f"{one['task_id']} ({one['prompt_tokens']} tokens)" for one in long])
            + ". Shorten them in 'tasks', raise inference.max_seq_length, or lower "
            "inference.max_new_tokens"
        )
    if long:
        logger.warning(
            "%d of %d prompts leave less than max_new_tokens=%d of max_seq_length=%d; "
            "tasks %s. Lower inference.top_k, or raise inference.max_seq_length",
            len(long),
            len(records),
            parameters.max_new_tokens,
            parameters.max_seq_length,
            _listed([str(record["task_id"]) for record in long]),
        )
    dropped = [record for record in records if record["shots_dropped"]]
    if dropped:
        logger.info(
            "%d of %d prompts dropped %d examples in total to fit; tasks %s",
            len(dropped),
            len(records),
            sum(record["shots_dropped"] for record in dropped),
            _listed([f"{one['task_id']} (-{one['shots_dropped']})" for one in dropped]),
        )


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:NAMED_IN_MESSAGES]) + (", …" if len(texts) > NAMED_IN_MESSAGES else "")


def _generate(
    prompts: Dataset,
    store: AnswerStore,
    model: ModelDirectory,
    adapter: ModelDirectory | None,
    texts: PromptParameters,
    parameters: InferenceParameters,
    description: str,
) -> list[Answer]:
    keys = answer_keys(list(prompts["prompt"]), model, adapter, parameters, texts)
    before = weights_of_answers(store, keys)
    load = partial(
        load_engine,
        model,
        adapter,
        parameters,
        stop_at_end_of_turn=texts.format == "chat_template",
        weights_before=before,
    )
    return answer_all(list(prompts), keys, store, load, description)


@unaffected_by(
    *WITHOUT_EFFECT_ON_ANSWERS,
    but=("params:prompts.format", "params:inference.cut_off_is_failure"),
)
@gpu_resources(estimate_inference)
def answer_tasks(
    prompts: Dataset,
    answer_store: AnswerStore,
    quantized_model: ModelDirectory,
    adapter: ModelDirectory,
    texts: PromptParameters,
    parameters: InferenceParameters,
) -> tuple[Dataset, dict[str, Any]]:
    """Return the submission (``task_id``, ``input``, ``output``) and ``inference_report``.

    Each answer is stored in ``answer_store`` when it is finished, and stored answers are not
    generated again. A failed task has an empty output and its reason in the report.

    Raises:
        InputError: The adapter was trained on other weights, or two tasks have one ``task_id``.
    """
    trained_on = adapter.provenance.get("base", {}).get("weights_sha256")
    if trained_on is not None and trained_on != quantized_model.provenance.get("weights_sha256"):
        raise InputError(
            f"adapter at {adapter.path} was trained on other weights than quantized_model at "
            f"{quantized_model.path}; train it again with 'kedro run --pipeline=sft', or set the "
            f"catalog entries to a model and its adapter"
        )
    tasks = list(prompts)
    require_unique_tasks(tasks)
    description = "inference: fine-tuned model"
    generated = _generate(
        prompts, answer_store, quantized_model, adapter, texts, parameters, description
    )
    report = report_answers(tasks, generated, parameters)
    _warn_of_cut_off(report)
    return _submission(prompts, generated), report


def _submission(tasks: Dataset, generated: Sequence[Answer]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"task_id": task["task_id"], "input": task["input"], "output": answer.text}
            for task, answer in zip(tasks, generated, strict=True)
        ]
    )


def _warn_of_cut_off(report: dict[str, Any]) -> None:
    rows = [row for row in report["tasks"] if not row["finished"] and row["new_tokens"]]
    if rows:
        logger.warning(
            "%d of %d answers were cut off at max_new_tokens; tasks %s. Raise "
            "inference.max_new_tokens, but look at repeated_share in inference_report first: a "
            "longer limit does not help a model that loops",
            len(rows),
            len(report["tasks"]),
            _listed([str(row["task_id"]) for row in rows]),
        )


@unaffected_by(
    *WITHOUT_EFFECT_ON_ANSWERS, but=("params:prompts.format", "params:inference.compare_tasks")
)
@gpu_resources(estimate_inference)
def answer_with_base_model(
    prompts: Dataset,
    answer_store: AnswerStore,
    quantized_model: ModelDirectory,
    texts: PromptParameters,
    parameters: InferenceParameters,
) -> Dataset:
    """Return the base model's answers to the first ``compare_tasks`` tasks, for comparison.

    Failed ones are empty, and a warning lists them.
    """
    from datasets import Dataset

    chosen = prompts.select(range(min(parameters.compare_tasks, len(prompts))))
    if not len(chosen):
        return Dataset.from_list([])
    generated = _generate(
        chosen, answer_store, quantized_model, None, texts, parameters, "inference: base model"
    )
    failed = [
        f"{task['task_id']} ({reason})"
        for task, answer in zip(chosen, generated, strict=True)
        if (reason := find_failure(answer, parameters))
    ]
    if failed:
        logger.warning(
            "the base model failed in %d of %d tasks: %s", len(failed), len(chosen), _listed(failed)
        )
    return _submission(chosen, generated)
