"""How long the real conversations are, in tokens of prompt and answer.

    python benchmarks/training/conversation_lengths.py [--regenerate]

``conversation_lengths.json`` has, for each of the 11,020 conversations of dolly_ja and
model_answers_ja that the recipe's filter (``conf/base``) keeps, in their order, the tokens of the
prompt, with BOS, and of the answer, with EOS, in the recipe's ``train_prompt``. They are counted
with the tokenizer of the demo's model, Gemma 3's, whose vocabulary of 262,144 is close to Gemma 2's
256,000 (``make demo`` writes it).

Printed are statistics of the lengths, and the share of padding in batches of 4 in random order, as
the recipe trains.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import PROJECT

LENGTHS = Path(__file__).with_name("conversation_lengths.json")
TOKENIZER = PROJECT / "data/06_models/demo/base_model"
BATCH = 4
MAX_LENGTH = 2048
SEED = 3407


def read_lengths() -> list[tuple[int, int]]:
    """Return tokens of prompt and answer of each conversation."""
    return [(prompt, answer) for prompt, answer in json.loads(LENGTHS.read_text())["tokens"]]


def filter_conversations() -> list[tuple[str, str]]:
    """Return the real conversations that ``conf/base`` keeps, as prompt and answer."""
    from kedro.io import MemoryDataset

    from benchmarks.filtering.make_conversations import find_real_files
    from benchmarks.harness.kedro_runs import read_configuration, run_pipeline
    from ja_instruct.datasets import JSONLinesDataset
    from ja_instruct.pipelines.data_filtering import create_pipeline

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        raw.write_bytes(b"".join(file.read_bytes() for file in find_real_files()))
        catalog = run_pipeline(
            create_pipeline().to_outputs("filtered_pairs"),
            {
                "raw_conversations": JSONLinesDataset(filepath=str(raw)),
                # only the report counts tokens
                "target_tokenizer": MemoryDataset(None),
            },
        )
        pairs = catalog["filtered_pairs"].load()
        kept = list(zip(pairs["instruction"], pairs["response"], strict=True))
    template = read_configuration("base")["parameters"]["prompts"]["train_prompt"]
    return [(template.format(question, ""), answer) for question, answer in kept]


def count_tokens(texts: list[tuple[str, str]], tokenizer: Any) -> list[tuple[int, int]]:
    """Return the tokens of each prompt, with BOS, and answer, with EOS unless it is empty."""
    wholes = tokenizer([prompt + answer for prompt, answer in texts])["input_ids"]
    prompts = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    lengths = []
    for (_, answer), whole, prompt in zip(texts, wholes, prompts, strict=True):
        length = len(whole) + bool(answer)
        # the answer's first token may merge with the prompt's last
        lengths.append((min(len(prompt), length), max(length - len(prompt), 0)))
    return lengths


def regenerate() -> None:
    """Write ``conversation_lengths.json``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    lengths = count_tokens(filter_conversations(), tokenizer)
    LENGTHS.write_text(json.dumps({"tokens": lengths}, separators=(",", ":")) + "\n", "utf-8")


def padding_share(lengths: list[int]) -> float:
    """Return the share of padding in batches of 4 in random order."""
    shuffled = random.Random(SEED).sample(lengths, len(lengths))
    batches = [shuffled[first : first + BATCH] for first in range(0, len(lengths), BATCH)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def describe(lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """Return statistics of the lengths, and the share of padding."""
    totals = [min(prompt + answer, MAX_LENGTH) for prompt, answer in lengths]
    return {
        "conversations": len(lengths),
        "tokens": sum(totals),
        "mean": round(statistics.mean(totals), 1),
        "median": statistics.median(totals),
        "percentile_99": round(statistics.quantiles(totals, n=100)[98]),
        f"longer_than_{MAX_LENGTH}": sum(sum(one) > MAX_LENGTH for one in lengths),
        "padding_percent": round(100 * padding_share(totals), 1),
    }


def main() -> None:
    """Print the statistics, after counting again with ``--regenerate``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regenerate", action="store_true", help="count the conversations again")
    options = parser.parse_args()
    if options.regenerate:
        regenerate()
    print(json.dumps(describe(read_lengths()), indent=2))


if __name__ == "__main__":
    main()
