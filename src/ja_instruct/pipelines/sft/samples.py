"""Training samples: from question and answer to token ids and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.prompts import PromptParameters, training_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100


def to_samples(
    pairs: Iterable[tuple[str, str]], prompts: PromptParameters, source: str
) -> list[dict[str, str]]:
    """Return a sample a pair: ``prompt`` up to the answer, ``completion``, ``source``."""
    return [
        {
            "prompt": training_prompt(prompts, question),
            "completion": answer,
            "source": source,
        }
        for question, answer in pairs
    ]


def encode_sample(
    sample: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    answer_only_loss: bool,
) -> dict[str, list[int]]:
    """Return ``input_ids`` and ``labels`` of one sample, cut to ``max_seq_length`` tokens.

    The text is prompt and completion, plus EOS when the completion is not empty, as the recipe
    has it. With ``answer_only_loss`` the labels of the prompt are -100; the answer begins where
    the tokens of the prompt alone and of the whole text part.
    """
    text = sample["prompt"] + sample["completion"]
    if sample["completion"]:
        text += str(tokenizer.eos_token)
    input_ids: list[int] = list(tokenizer(text)["input_ids"])
    labels = list(input_ids)
    if answer_only_loss:
        prompt_ids: list[int] = list(tokenizer(sample["prompt"])["input_ids"])
        pairs = zip(prompt_ids, input_ids, strict=False)
        start = next(
            (position for position, (one, other) in enumerate(pairs) if one != other),
            len(prompt_ids),
        )
        labels[:start] = [IGNORED_LABEL] * start
    return {"input_ids": input_ids[:max_seq_length], "labels": labels[:max_seq_length]}


def encode_dataset(
    samples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    answer_only_loss: bool,
) -> tuple[Dataset, dict[str, Any]]:
    """Encode every sample; drop those whose cut leaves nothing to learn.

    Returns:
        A dataset of ``input_ids`` and ``labels``, and counts: samples, tokens, tokens in the
        loss, samples cut, samples dropped.
    """
    from datasets import Dataset
    from tqdm import tqdm

    rows = []
    cut = 0
    for sample in tqdm(samples, desc="sft: tokenizing", unit="sample", disable=None):
        row = encode_sample(sample, tokenizer, max_seq_length, answer_only_loss)
        cut += len(row["input_ids"]) == max_seq_length
        if any(label != IGNORED_LABEL for label in row["labels"]):
            rows.append(row)
    counts = {
        "samples": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "loss_tokens": sum(label != IGNORED_LABEL for row in rows for label in row["labels"]),
        "at_max_seq_length": cut,
        "dropped": len(samples) - len(rows),
    }
    return Dataset.from_dict(
        {key: [row[key] for row in rows] for key in ("input_ids", "labels")}
    ), counts
