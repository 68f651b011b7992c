"""How long the real conversations are, in tokens of prompt and answer.

    python benchmarks/training/conversation_lengths.py [--regenerate]

``conversation_lengths.json`` holds numbers alone: for each of the 11,020 conversations of dolly_ja
and model_answers_ja that the recipe's filter (``conf/base``) keeps, in their order, the tokens of
the prompt, with BOS, and of the answer, with EOS, in the recipe's ``train_prompt``. Counted is
with the tokenizer of the demo's model, Gemma 3's, whose vocabulary of 262,144 is close to Gemma 2's
of 256,000 (``make demo`` puts it where ``--tokenizer`` looks by default).

Printed are the lengths and what of a batch is padding: in batches of 4 in random order, as the
recipe trains, and where the 32 samples of a step are sorted by length and filled into batches of so
many tokens, padding included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import MemoryDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LENGTHS = Path(__file__).with_name("conversation_lengths.json")
TOKENIZER = PROJECT / "data/06_models/demo/base_model"
BATCH = 4
STEP = 32
BUDGETS = (2048, 4096, 8192)
MAX_LENGTH = 2048
SEED = 3407


def read_lengths() -> list[tuple[int, int]]:
    """Return tokens of prompt and answer of each conversation."""
    return [(prompt, answer) for prompt, answer in json.loads(LENGTHS.read_text())["tokens"]]


def render(template: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return prompt and answer of each pair, in the recipe's ``train_prompt``."""
    return [(template.format(question, ""), answer) for question, answer in pairs]


def filter_conversations() -> list[tuple[str, str]]:
    """Return what ``data_filtering`` of ``conf/base`` keeps of the real conversations, rendered."""
    from benchmarks.filtering.make_conversations import find_real_files
    from benchmarks.harness.kedro_runs import read_configuration, run_pipeline
    from ja_instruct.datasets import JSONLinesDataset
    from ja_instruct.pipelines.data_filtering import create_pipeline

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        raw.write_bytes(b"".join(file.read_bytes() for file in find_real_files()))
        wanted = create_pipeline().to_outputs("filtered_pairs")
        catalog = run_pipeline(
            wanted,
            {
                "raw_conversations": JSONLinesDataset(filepath=str(raw)),
                # only the report counts tokens, and it is not asked for
                "target_tokenizer": MemoryDataset(None),
            },
        )
        pairs = catalog["filtered_pairs"].load()
        kept = list(zip(pairs["instruction"], pairs["response"], strict=True))
    return render(read_configuration("base")["parameters"]["prompts"]["train_prompt"], kept)


def count_tokens(texts: list[tuple[str, str]], tokenizer: Any) -> list[tuple[int, int]]:
    """Return tokens of prompt, with BOS, and of the answer, with EOS unless it is empty."""
    wholes = tokenizer([prompt + answer for prompt, answer in texts])["input_ids"]
    prompts = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    lengths = []
    for (_, answer), whole, prompt in zip(texts, wholes, prompts, strict=True):
        length = len(whole) + bool(answer)
        # an answer may merge with the end of its prompt
        lengths.append((min(len(prompt), length), max(length - len(prompt), 0)))
    return lengths


def regenerate(tokenizer_directory: Path) -> None:
    """Write ``conversation_lengths.json``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory, local_files_only=True)
    lengths = count_tokens(filter_conversations(), tokenizer)
    content = json.dumps({"tokens": lengths}, separators=(",", ":"))
    LENGTHS.write_text(content.replace("],", "],\n") + "\n", "utf-8")


def padding_at_random(lengths: Sequence[int]) -> float:
    """Return the share of padding in batches of 4 in random order."""
    order = random.Random(SEED).sample(range(len(lengths)), len(lengths))
    batches = [
        [lengths[place] for place in order[first : first + BATCH]]
        for first in range(0, len(order), BATCH)
    ]
    return _share_of_padding(batches)


def padding_in_sorted_steps(lengths: Sequence[int], budget: int) -> float:
    """Return the share of padding where each step's samples, sorted, fill batches of a budget."""
    order = random.Random(SEED).sample(range(len(lengths)), len(lengths))
    batches: list[list[int]] = []
    for first in range(0, len(order), STEP):
        step = sorted((lengths[place] for place in order[first : first + STEP]), reverse=True)
        batches.append([])
        for length in step:
            # the first of a batch is its longest
            if batches[-1] and batches[-1][0] * (len(batches[-1]) + 1) > budget:
                batches.append([])
            batches[-1].append(length)
    return _share_of_padding(batches)


def _share_of_padding(batches: Sequence[Sequence[int]]) -> float:
    padded = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / padded


def describe(lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """Return counts, means, percentiles and shares of padding."""
    totals = [min(prompt + answer, MAX_LENGTH) for prompt, answer in lengths]
    percentiles = statistics.quantiles(totals, n=100)
    return {
        "conversations": len(lengths),
        "tokens": sum(totals),
        "answer_percent": round(100 * sum(a for _, a in lengths) / sum(map(sum, lengths)), 1),
        "mean": round(statistics.mean(totals), 1),
        "median": statistics.median(totals),
        "percentile_90": round(percentiles[89]),
        "percentile_99": round(percentiles[98]),
        "longest": max(prompt + answer for prompt, answer in lengths),
        f"longer_than_{MAX_LENGTH}": sum(p + a > MAX_LENGTH for p, a in lengths),
        "padding_percent_at_random": round(100 * padding_at_random(totals), 1),
        "padding_percent_sorted": {
            budget: round(100 * padding_in_sorted_steps(totals, budget), 1) for budget in BUDGETS
        },
    }


def main() -> None:
    """Print the figures, after counting anew where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regenerate", action="store_true", help="count the conversations anew")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    options = parser.parse_args()
    if options.regenerate:
        regenerate(options.tokenizer.resolve())
    figures = describe(read_lengths())
    for name, value in figures.items():
        print(f"{name:<28}{value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
