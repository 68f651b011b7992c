"""A tiny random ColBERT checkpoint, for tests and the ``test`` environment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = 32
LAYERS = 2
DIMENSION = 16
WINDOW = 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "[unused2]")


def make_tiny_colbert(directory: Path, texts: list[str]) -> None:
    """Write a BERT of 2 layers and 32 hidden units with a ColBERT head of 16 dimensions.

    The weights are random but always the same. The tokenizer has one token a character: those of
    ``texts``, of ASCII and the Japanese syllables.

    Args:
        directory: Where to write; it is created.
        texts: Their characters are known to the tokenizer.
    """
    from safetensors.torch import save_file

    syllables = [chr(code) for code in [*range(0x21, 0x7F), *range(0x3041, 0x30FF)]]
    characters = sorted(set("".join(texts)).union(syllables) - set(" \t\r\n\u3000"))
    vocabulary = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_make_weights(len(vocabulary)), directory / "model.safetensors")
    _write_tokenizer(directory, vocabulary)
    config = {
        "architectures": ["HF_ColBERT"],
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": WINDOW,
        "vocab_size": len(vocabulary),
        "dtype": "float32",
    }
    colbert = {"dim": DIMENSION, "query_maxlen": 32, "doc_maxlen": WINDOW}
    for name, content in (("config.json", config), ("artifact.metadata", colbert)):
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def _make_weights(vocabulary_size: int) -> dict:
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(DIMENSION, HIDDEN, generator=generator)}

    def dense(name: str, out: int, into: int) -> None:
        weights[f"bert.{name}.weight"] = torch.randn(out, into, generator=generator) * 0.1
        weights[f"bert.{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name: str) -> None:
        weights[f"bert.{name}.weight"] = torch.ones(HIDDEN)
        weights[f"bert.{name}.bias"] = torch.zeros(HIDDEN)

    for table, rows in (("word", vocabulary_size), ("position", WINDOW), ("token_type", 2)):
        embedding = torch.randn(rows, HIDDEN, generator=generator)
        weights[f"bert.embeddings.{table}_embeddings.weight"] = embedding
    norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", 2 * HIDDEN, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, 2 * HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", HIDDEN, HIDDEN)
    return weights


def _write_tokenizer(directory: Path, vocabulary: list[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=1000))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": WINDOW,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
