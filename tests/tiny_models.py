"""Tiny random models, for tests and the ``test`` environment: ``python tests/tiny_models.py``."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_colbert import make_tiny_colbert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_SIZE = 2000
CHARACTERS = 1000
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
SEED = 0


def make_tiny_gemma2(directory: Path, texts: list[str]) -> None:
    """Write a Gemma 2 of 2 layers and 64 hidden units, with a tokenizer trained on ``texts``.

    The weights are random but always the same; one layer attends to a window, the other to
    everything, and logits are bounded as in Gemma 2. All matrices have multiples of 64 elements,
    which is bitsandbytes' NF4 block. There is no chat template, as in the base model.

    Args:
        directory: Where to write; it is created.
        texts: What the tokenizer's about 2,000 pieces are learned from.
    """
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = make_tiny_tokenizer(texts)
    config = Gemma2Config(
        vocab_size=64 * -(-len(tokenizer) // 64),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=8192,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        initializer_range=0.05,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = Gemma2ForCausalLM(config)
    # random weights give logits so small that bounding them, or an adapter, would change nothing
    # that a test could see
    torch.nn.init.constant_(model.model.norm.weight, 16.0)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """Return a Gemma tokenizer: BPE with byte fallback, adding BOS, learned from ``texts``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    counts = Counter("".join(texts).replace(" ", "▁"))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:CHARACTERS]
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=[*SPECIAL, *BYTES],
            # chosen here because the trainer breaks ties by chance
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[5:])})
    return tokenizer


def read_demo_texts(project: Path) -> list[str]:
    """Return every text of the demo's data, turn by turn and field by field."""
    texts = []
    for path in sorted((project / "data/01_raw/demo").glob("*.jsonl")):
        for line in path.read_text("utf-8").split("\n"):
            record = json.loads(line) if line else {}
            turns = record.get("conversations", [])
            texts += [turn["content"] for turn in turns]
            texts += [record[key] for key in ("input", "output") if key in record]
    return texts


def make_tiny_models(project: Path) -> list[Path]:
    """Write the models of the environment ``test`` below ``project`` and return where."""
    models = project / "data/06_models/test"
    texts = read_demo_texts(project)
    make_tiny_gemma2(models / "tiny_gemma2", texts)
    make_tiny_colbert(models / "tiny-colbert", texts)
    return [models / "tiny_gemma2", models / "tiny-colbert"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the tiny models of the environment 'test'.")
    parser.add_argument("project", type=Path, nargs="?", default=Path(), help="default: .")
    for path in make_tiny_models(parser.parse_args().project):
        print(path)
