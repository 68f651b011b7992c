"""How many tokens texts have, and the bounds on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# The threads of the tokenizer share a batch; the encodings of a batch are in memory together, about
# 100 bytes a token.
BATCH_TEXTS = 1000


class TokenViolation(NamedTuple):
    """The field that is too short, or the longer one of a pair that is too long, and its tokens."""

    field: str
    matched: str


def measure_token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the number of tokens of each text, shape (texts,), without special tokens.

    Counts every token, whatever truncation and padding the tokenizer is set to, and leaves it as it
    was. The tokenizer works in threads of its own (``RAYON_NUM_THREADS`` bounds them, and
    ``TOKENIZERS_PARALLELISM=false`` turns them off).

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one token a character
    >>> measure_token_counts(["東京です。", "", "はい"], tokenizer).tolist()
    [5, 0, 2]
    """
    import numpy as np

    tokenizer = _copy_unbounded(tokenizer)
    counts = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = list(texts[start : start + BATCH_TEXTS])
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        counts[start : start + len(batch)] = [len(encoding) for encoding in encodings]
    return counts


def find_token_count(
    instruction_tokens: int,
    response_tokens: int,
    *,
    response_tokens_min: int,
    pair_tokens_max: int,
) -> TokenViolation | None:
    """Find a response of too few tokens, or a pair of too many on both fields together.

    >>> find_token_count(9, 5, response_tokens_min=2, pair_tokens_max=1500)
    >>> find_token_count(9, 1, response_tokens_min=2, pair_tokens_max=1500)
    TokenViolation(field='response', matched='1 < 2')
    >>> find_token_count(900, 700, response_tokens_min=2, pair_tokens_max=1500)
    TokenViolation(field='instruction', matched='900 + 700 > 1500')
    """
    if response_tokens < response_tokens_min:
        return TokenViolation("response", f"{response_tokens} < {response_tokens_min}")
    if instruction_tokens + response_tokens > pair_tokens_max:
        longer = "instruction" if instruction_tokens > response_tokens else "response"
        return TokenViolation(
            longer, f"{instruction_tokens} + {response_tokens} > {pair_tokens_max}"
        )
    return None


def _copy_unbounded(tokenizer: Tokenizer) -> Tokenizer:
    """Return ``tokenizer``, or where it truncates or pads, a copy that does neither."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    # copied through its text, since the tokenizer that was given serves others too
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
