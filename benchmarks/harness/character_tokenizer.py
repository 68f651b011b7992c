"""A Gemma tokenizer with a token for each of 1,000 Japanese characters, and no merges.

A text of n of these characters has exactly n tokens, and BOS before them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
#: Rows of JIS X 0208: hiragana, katakana, and the first level of kanji.
JIS_ROWS = (4, 5, *range(16, 48))
CHARACTERS = 1000


def japanese_characters() -> list[str]:
    """Return 1,000 Japanese characters: the kana, and kanji of JIS X 0208's first level."""
    codes = [bytes([0xA0 + row, 0xA0 + cell]) for row in JIS_ROWS for cell in range(1, 95)]
    return list("".join(code.decode("euc_jp", errors="ignore") for code in codes))[:CHARACTERS]


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Return a Gemma tokenizer: BOS added, byte fallback, one token a character, no merges."""
    from transformers import GemmaTokenizer

    pieces = [*SPECIAL, *BYTES, *japanese_characters(), "▁", "\n"]
    tokenizer: PreTrainedTokenizerBase = GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], add_bos_token=True
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[5:])})
    return tokenizer


def random_samples(lengths: Iterable[tuple[int, int]], seed: int) -> list[tuple[str, str]]:
    """Return prompts and answers of given lengths in tokens, BOS and EOS included."""
    characters, generator = japanese_characters(), random.Random(seed)

    def text(length: int) -> str:
        return "".join(generator.choices(characters, k=length))

    return [(text(prompt - 1), text(answer - 1)) for prompt, answer in lengths]
