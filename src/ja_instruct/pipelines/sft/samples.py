"""Training samples: question and answer as token ids and labels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from ja_instruct.prompts import PromptParameters, eos_text, training_sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100
BATCH_SAMPLES = 1000
WARN_ABOVE_SHARE = 0.01

logger = logging.getLogger(__name__)


def to_samples(
    pairs: Iterable[tuple[str, str]],
    prompts: PromptParameters,
    source: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[dict[str, str]]:
    """Return the ``training_sample`` of each pair: ``prompt``, ``completion`` and ``source``."""
    from tqdm import tqdm

    samples = []
    # without a chat template 130,000 pairs take less than the delay
    shown = {"desc": f"sft: {source}", "unit": "sample", "delay": 2, "disable": None}
    for question, answer in tqdm(list(pairs), **shown):
        prompt, completion = training_sample(prompts, question, answer, tokenizer)
        samples.append({"prompt": prompt, "completion": completion, "source": source})
    return samples


def encode_dataset(
    samples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    completion_only_loss: bool,
    over_long: Literal["cut", "drop"] = "cut",
) -> tuple[Dataset, dict[str, int]]:
    """Encode the samples; cut or drop long ones, and drop those without a label.

    The text of a sample is prompt and completion, plus EOS when the completion is not empty, as
    in the recipe. With ``completion_only_loss`` the labels of the prompt are -100. The completion
    starts at the first token in which the whole text differs from the prompt alone.

    Returns:
        A dataset of ``input_ids`` and ``labels`` in the order of ``samples``, and counts:
        ``samples``, their ``tokens`` and the ``loss_tokens`` among them, samples that are ``cut``,
        ``dropped_over_long`` or ``dropped_nothing_to_learn`` (no token of the answer is left), and
        ``longest``, the tokens of the longest sample before it is cut.

    Raises:
        InputError: The tokenizer has no EOS.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    dropped = ("dropped_over_long", "dropped_nothing_to_learn")
    counts = dict.fromkeys(("samples", "tokens", "loss_tokens", "cut", *dropped, "longest"), 0)
    parts = []
    with tqdm(total=len(samples), desc="sft: tokenizing", unit="sample", disable=None) as bar:
        for first in range(0, len(samples), BATCH_SAMPLES):
            batch = samples[first : first + BATCH_SAMPLES]
            kept = []
            for ids, start in _encode(batch, tokenizer, completion_only_loss):
                longer = len(ids) > max_seq_length
                counts["longest"] = max(counts["longest"], len(ids))
                if longer and over_long == "drop":
                    counts["dropped_over_long"] += 1
                elif start >= min(len(ids), max_seq_length):
                    counts["dropped_nothing_to_learn"] += 1
                else:
                    counts["cut"] += longer
                    kept.append((ids[:max_seq_length], start))
            counts["samples"] += len(kept)
            counts["tokens"] += sum(len(ids) for ids, _ in kept)
            counts["loss_tokens"] += sum(len(ids) - start for ids, start in kept)
            if kept:
                parts.append(Dataset.from_dict(_as_columns(kept)))
            bar.update(len(batch["prompt"]))
    _warn_of_long_samples(counts, len(samples), max_seq_length)
    return concatenate_datasets(parts or [Dataset.from_dict(_as_columns([]))]), counts


def _encode(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, completion_only_loss: bool
) -> list[tuple[list[int], int]]:
    """Return the ids of every sample, and the position of its first token in the loss."""
    end = eos_text(tokenizer)
    texts = [
        prompt + completion + (end if completion else "")
        for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)
    ]
    # in one call, as a fast tokenizer splits a list among the processor's cores
    encoded: list[list[int]] = tokenizer(texts, return_attention_mask=False)["input_ids"]
    if not completion_only_loss:
        return [(ids, 0) for ids in encoded]
    prompts: list[list[int]] = tokenizer(batch["prompt"], return_attention_mask=False)["input_ids"]
    return [(ids, _common_length(ids, alone)) for ids, alone in zip(encoded, prompts, strict=True)]


def _common_length(ids: list[int], others: list[int]) -> int:
    """Return the length of the common beginning."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ids), len(others)))


def _as_columns(rows: list[tuple[list[int], int]]) -> dict[str, list[list[int]]]:
    return {
        "input_ids": [ids for ids, _ in rows],
        "labels": [[IGNORED_LABEL] * start + ids[start:] for ids, start in rows],
    }


def _warn_of_long_samples(counts: dict[str, int], samples: int, max_seq_length: int) -> None:
    over_long = counts["cut"] + counts["dropped_over_long"]
    nothing = counts["dropped_nothing_to_learn"]
    if over_long + nothing > WARN_ABOVE_SHARE * samples:
        logger.warning(
            "Of %d samples %d are cut and %d dropped, as they exceed sft.max_seq_length=%d tokens "
            "(the longest has %d); %d more have no answer within it. Raise sft.max_seq_length, or "
            "reject them in data_filtering (its rule token_count)",
            samples,
            counts["cut"],
            counts["dropped_over_long"],
            max_seq_length,
            counts["longest"],
            nothing,
        )
