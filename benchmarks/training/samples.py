"""Samples to train on: random characters as long as real conversations are, or real texts.

A sample is prompt and answer; BOS and EOS, which the trainers add, count among its tokens.
"""

from __future__ import annotations

import json
import random
import sys
from typing import TYPE_CHECKING

import yaml

from benchmarks.harness.character_tokenizer import japanese_characters
from benchmarks.harness.recording import PROJECT
from benchmarks.training.conversation_lengths import read_lengths, render

if TYPE_CHECKING:
    from pathlib import Path

SEED = 3407
ANSWER_OF_LONGEST = 100


def random_samples(lengths: list[tuple[int, int]], seed: int) -> list[tuple[str, str]]:
    """Return prompt and answer of given lengths in tokens, BOS and EOS among them."""
    characters = japanese_characters()
    chance = random.Random(seed)

    def text(count: int) -> str:
        return "".join(chance.choices(characters, k=count))

    return [(text(prompt - 1), text(answer - 1)) for prompt, answer in lengths]


def longest_samples(count: int, max_length: int) -> list[tuple[str, str]]:
    """Return samples of exactly ``max_length`` tokens."""
    return random_samples([(max_length - ANSWER_OF_LONGEST, ANSWER_OF_LONGEST)] * count, SEED)


def usual_samples(count: int, max_length: int) -> list[tuple[str, str]]:
    """Return samples as long as real conversations, drawn of those that need not be cut."""
    possible = [(p, a) for p, a in read_lengths() if a > 1 and p + a <= max_length]
    return random_samples(random.Random(SEED).sample(possible, count), SEED)


def real_samples(path: Path, model: Path, count: int, max_length: int) -> list[tuple[str, str]]:
    """Return prompt and answer of real texts, drawn of those that need not be cut.

    Args:
        path: JSON Lines with ``instruction`` and ``response``.
        model: Whose tokenizer counts.
        count: How many to draw; exits where there are fewer.
        max_length: Tokens of both together.
    """
    from transformers import AutoTokenizer

    parameters = yaml.safe_load((PROJECT / "conf/base/parameters_prompts.yml").read_text("utf-8"))
    with path.open(encoding="utf-8", newline="\n") as file:
        pairs = [(pair["instruction"], pair["response"]) for pair in map(json.loads, file)]
    texts = render(parameters["prompts"]["train_prompt"], [pair for pair in pairs if pair[1]])
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids = tokenizer([prompt + answer for prompt, answer in texts])["input_ids"]
    # EOS comes on top
    possible = [text for text, one in zip(texts, ids, strict=True) if len(one) < max_length]
    if len(possible) < count:
        sys.exit(
            f"{path}: {len(possible)} samples of at most {max_length} tokens, and {count} are "
            f"needed; give fewer --steps"
        )
    return random.Random(SEED).sample(possible, count)
