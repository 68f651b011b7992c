"""BM25 on character bigrams, by bm25s (https://arxiv.org/abs/2407.03618): search without a model.

Japanese has no spaces, and bigrams need no dictionary. Variant and constants are the library's
defaults: Lucene, k1 = 1.5, b = 0.75. The index is built from the texts for every search and never
saved: it takes 40 ms for the recipe's 111 questions and 0.4 s for JSQuAD's 1,145 passages, no more
than reading it from the disk would.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.retrieval.ranking import Result
from ja_instruct.text import fold, split_ngrams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bm25s import BM25

logger = logging.getLogger(__name__)


def normalize(text: str) -> str:
    r"""Return the text in NFKC without case, white space and control characters.

    >>> normalize(" ｶﾞﾝﾀﾞﾑ　ＲＸ\u200b78 ")
    'ガンダムrx78'
    """
    return fold(text, drop=("Cc", "Cf", "Z"))


def split_bigrams(text: str) -> list[str]:
    """Return the character bigrams of the normalized text; a single character is one token.

    >>> split_bigrams("日本の 首都")
    ['日本', '本の', 'の首', '首都']
    >>> split_bigrams("川"), split_bigrams("　")
    (['川'], [])
    """
    normal = normalize(text)
    return split_ngrams(normal, 2) or list(normal)


def search_bigrams(
    questions: Sequence[str], queries: Sequence[str], top_k: int, *, keep_unrelated: bool = True
) -> list[list[Result]]:
    """Search a pool of n questions for each of m queries.

    Returns:
        m lists of ``top_k`` results, best first; the earlier position wins a tie. Questions that
        share no bigram with the query score 0; ``keep_unrelated=False`` leaves them out.

    Raises:
        InputError: No question contains a character to compare.
    """
    import numpy as np

    index = _index(questions)
    unrelated = 0
    found = []
    for query in queries:
        scores = index.get_scores_from_ids(index.get_tokens_ids(split_bigrams(query)))
        # bm25s' own selection leaves the order of ties open
        positions = np.argsort(-scores, kind="stable")[:top_k]
        results = [Result(int(position), float(scores[position])) for position in positions]
        unrelated += not results[0].score
        found.append([result for result in results if keep_unrelated or result.score])
    if unrelated:
        logger.warning(
            "%d of %d queries have no pair of characters in common with any question of the pool, "
            "so BM25 cannot rank the questions for them",
            unrelated,
            len(queries),
        )
    return found


def _index(questions: Sequence[str]) -> BM25:
    from bm25s import BM25

    tokens = [split_bigrams(question) for question in questions]
    if not any(tokens):
        raise InputError(
            f"none of the {len(questions)} questions of 'few_shot_pool' contains a character that "
            f"BM25 can compare; check its column 'input'"
        )
    index = BM25()
    index.index(tokens, create_empty_token=False, show_progress=False)
    return index
