"""Normalized texts, their character n-grams, and how similar two texts are.

Japanese is written without spaces, so n-grams are of characters.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


def fold(text: str, *, drop: tuple[str, ...] = ()) -> str:
    """Return ``text`` in Unicode NFKC and case-folded, without the Unicode categories ``drop``.

    >>> fold("ｶﾞﾝﾀﾞﾑ ＲＸ、78！", drop=("P", "Z"))
    'ガンダムrx78'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not drop:
        return folded
    return "".join(one for one in folded if not unicodedata.category(one).startswith(drop))


def letters_and_digits(text: str) -> str:
    """Return the folded letters and digits of ``text``, several times as fast as ``fold``.

    >>> letters_and_digits("次のSFを、１０冊 挙げて。")
    '次のsfを10冊挙げて'
    """
    return _NOT_ALPHANUMERIC.sub("", fold(text))


def collapse_whitespace(text: str) -> str:
    """Return ``text`` in Unicode NFKC, with each run of whitespace as one space.

    >>> collapse_whitespace(" １０個の\u3000カキ ")
    '10個の カキ'
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def split_ngrams(text: str, chars: int) -> list[str]:
    """Return all character n-grams of a text, in order; none of a shorter text.

    >>> split_ngrams("首都は", 2)
    ['首都', '都は']
    """
    return [text[start : start + chars] for start in range(len(text) - chars + 1)]


def ngram_set(text: str, chars: int) -> frozenset[str]:
    """Return the set of a text's n-grams; a shorter text is the only element of its own.

    >>> sorted(ngram_set("首都は", 2)), ngram_set("首", 2)
    (['都は', '首都'], frozenset({'首'}))
    """
    return frozenset(split_ngrams(text, chars) or [text])


def jaccard(first: AbstractSet[str], second: AbstractSet[str]) -> float:
    """Return the Jaccard similarity of two sets that are not both empty, from 0 to 1.

    >>> jaccard(set("日本"), set("日光"))
    0.3333333333333333
    """
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common beginning.

    >>> common_length("東京都", "東京です")
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
