"""Nodes of ``inference``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.gpu_need import needs_gpu
from ja_instruct.models import ModelDirectory
from ja_instruct.pipelines.inference.generation import Generated, generate_answers
from ja_instruct.pipelines.inference.gpu_need import estimate_inference
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.prompts import PromptParameters, inference_prompt
from ja_instruct.records import as_dataset, require_columns
from ja_instruct.retrieval import require_same_pool, retrieve

if TYPE_CHECKING:
    from datasets import Dataset

    from ja_instruct.retrieval import ColbertCheckpoint, RetrievalIndex
else:  # Kedro resolves the hints of a node; these libraries take seconds to import
    Dataset = ColbertCheckpoint = RetrievalIndex = Any

logger = logging.getLogger(__name__)


def build_prompts(
    tasks: Dataset,
    qa_pairs: Dataset,
    retrieval_index: RetrievalIndex,
    retriever_checkpoint: ColbertCheckpoint,
    quantized_model: ModelDirectory,
    prompts: PromptParameters,
    parameters: InferenceParameters,
) -> Dataset:
    """Return what the model will see: one record a task, in order.

    The ``top_k`` pairs of the pool that are most similar to the task become its shots, worst
    first and best last, in the format that ``prompts.format`` names.

    Returns:
        ``task_id``, ``input``, ``prompt`` (without the BOS that tokenization adds), ``shots``
        (``input``, ``output``, ``score`` in prompt order) and ``prompt_tokens``.

    Raises:
        InputError: A column is missing, the index is of another pool, or the tokenizer lacks
            what the format needs.
    """
    from datasets import Dataset

    tasks = as_dataset(tasks, "tasks")
    qa_pairs = as_dataset(qa_pairs, "qa_pairs")
    require_columns(tasks, ("task_id", "input"), "tasks")
    require_columns(qa_pairs, ("input", "output"), "qa_pairs")
    require_same_pool(retrieval_index, list(qa_pairs["input"]))
    questions = list(tasks["input"])
    hits = (
        retrieve(
            retrieval_index,
            retriever_checkpoint,
            questions,
            parameters.top_k,
            max_query_tokens=parameters.max_query_tokens,
        )
        if parameters.top_k
        else [[] for _ in questions]
    )
    tokenizer = quantized_model.load_tokenizer()
    records = []
    for task, best_first in zip(tasks, hits, strict=True):
        shots = [
            {
                **{key: qa_pairs[hit.position][key] for key in ("input", "output")},
                "score": hit.score,
            }
            for hit in reversed(best_first)
        ]
        prompt = inference_prompt(prompts, task["input"], shots, tokenizer)
        records.append(
            {
                "task_id": task["task_id"],
                "input": task["input"],
                "prompt": prompt,
                "shots": shots,
                "prompt_tokens": len(tokenizer(prompt)["input_ids"]),
            }
        )
    _warn_of_long_prompts(records, parameters)
    return Dataset.from_list(records)


def _warn_of_long_prompts(records: list[dict[str, Any]], parameters: InferenceParameters) -> None:
    room = parameters.max_seq_length - parameters.max_new_tokens
    long = [record["task_id"] for record in records if record["prompt_tokens"] > room]
    if long:
        logger.warning(
            "%d of %d prompts leave less than max_new_tokens=%d of max_seq_length=%d; "
            "tasks %s. Lower inference.top_k, or raise inference.max_seq_length",
            len(long),
            len(records),
            parameters.max_new_tokens,
            parameters.max_seq_length,
            ", ".join(map(str, long[:10])) + (", …" if len(long) > 10 else ""),
        )


def _generate(
    prompts: Dataset,
    model: ModelDirectory,
    adapter: ModelDirectory | None,
    parameters: InferenceParameters,
    description: str,
) -> list[Generated]:
    from tqdm import tqdm

    answers = generate_answers(prompts["prompt"], model, adapter, parameters)
    return list(tqdm(answers, desc=description, total=len(prompts), unit="task", disable=None))


@needs_gpu(estimate_inference)
def answer_tasks(
    prompts: Dataset,
    quantized_model: ModelDirectory,
    adapter: ModelDirectory,
    parameters: InferenceParameters,
) -> tuple[Dataset, dict[str, Any]]:
    """Return the submission (``task_id``, ``input``, ``output``) and ``inference_report``.

    Raises:
        InputError: The adapter was trained on other weights.
    """
    from datasets import Dataset

    trained_on = adapter.provenance.get("base", {}).get("weights_sha256")
    if trained_on is not None and trained_on != quantized_model.provenance.get("weights_sha256"):
        raise InputError(
            f"adapter at {adapter.path} was trained on other weights than quantized_model at "
            f"{quantized_model.path}; train it again with 'kedro run --pipeline=sft', or point the "
            f"catalog at the pair that belongs together"
        )
    generated = _generate(
        prompts, quantized_model, adapter, parameters, "inference: fine-tuned model"
    )
    answers = [
        {"task_id": prompt["task_id"], "input": prompt["input"], "output": answer.text}
        for prompt, answer in zip(prompts, generated, strict=True)
    ]
    new_tokens = sum(answer.new_tokens for answer in generated)
    seconds = sum(answer.seconds for answer in generated)
    report = {
        "summary": {
            "tasks": len(answers),
            "new_tokens": new_tokens,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(new_tokens / seconds, 2) if seconds else 0.0,
            "cut_off": sum(not answer.finished for answer in generated),
            "empty": sum(not answer.text for answer in generated),
        },
        "tasks": [
            {
                "task_id": prompt["task_id"],
                "prompt_tokens": answer.prompt_tokens,
                "new_tokens": answer.new_tokens,
                "finished": answer.finished,
                "seconds": round(answer.seconds, 2),
            }
            for prompt, answer in zip(prompts, generated, strict=True)
        ],
    }
    return Dataset.from_list(answers), report


@needs_gpu(estimate_inference)
def answer_with_base_model(
    prompts: Dataset, quantized_model: ModelDirectory, parameters: InferenceParameters
) -> Dataset:
    """Answer the first ``compare_tasks`` tasks without the adapter, for comparison."""
    from datasets import Dataset

    chosen = prompts.select(range(min(parameters.compare_tasks, len(prompts))))
    if not len(chosen):
        return Dataset.from_list([])
    generated = _generate(chosen, quantized_model, None, parameters, "inference: base model")
    return Dataset.from_list(
        [
            {"task_id": prompt["task_id"], "input": prompt["input"], "output": answer.text}
            for prompt, answer in zip(chosen, generated, strict=True)
        ]
    )
