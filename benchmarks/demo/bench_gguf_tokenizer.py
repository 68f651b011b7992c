"""What the demo's model loses with the tokenizer that transformers makes of its GGUF file.

    python benchmarks/demo/bench_gguf_tokenizer.py

transformers reads the file's BPE ranks as Unigram scores, and loses the merges when it saves them;
the product builds the BPE. Each encodes the demo's 20 reference answers for the model's loss.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import read_configuration
from benchmarks.harness.recording import PROJECT, print_table, record
from ja_instruct.demo.gguf_model_dataset import (
    assemble_gguf,
    read_gemma_tokenizer,
    read_gguf_model,
)


def measure(model: torch.nn.Module, tokenizer: object, answers: list[str]) -> dict[str, float]:
    """Return the tokens of all answers and their negative log-likelihood per character."""
    tokens, nats = 0, 0.0
    for answer in answers:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        batch = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.inference_mode():
            nats += model(batch, labels=batch).loss.item() * len(ids)
        tokens += len(ids)
    return {"tokens": tokens, "nats_per_character": round(nats / sum(map(len, answers)), 3)}


def main() -> None:
    """Measure all tokenizers, print and keep the figures."""
    from gguf import GGUFReader

    source = read_configuration("demo")["catalog"]["base_model"]
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
        rows = {name: measure(model, tokenizer, answers) for name, tokenizer in tokenizers.items()}
    print_table(rows, {"tokens": "tokens", "nats a character": "nats_per_character:.3f"})
    ours, theirs = (rows[name]["nats_per_character"] for name in ("ja-instruct", "transformers"))
    record("gguf_tokenizer", {"ratio": round(ours / theirs, 3), "results": rows})


if __name__ == "__main__":
    main()
