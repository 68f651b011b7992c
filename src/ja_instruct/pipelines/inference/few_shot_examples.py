"""Choose the few-shot examples of a task from its retrieval results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.retrieval.index import retrieve
from ja_instruct.text import fold, jaccard, ngram_set

if TYPE_CHECKING:
    from ja_instruct.retrieval.index import ColbertCheckpoint, RetrievalIndex
    from ja_instruct.retrieval.ranking import Result

# Similarity from which two questions are the same task. JSQuAD's pairs at 0.8 to 0.9 nearly all ask
# the same in other words, or differ in one of fifty characters. At 0.6 to 0.7 they share a template
# (青森県の県庁所在地は, 秋田県の県庁所在地は), which makes good examples.
SAME_TASK_JACCARD = 0.8
SAME_TASK_NGRAM_CHARS = 5
DIVERSITY_NGRAM_CHARS = 2
# Candidates per example when examples shall be diverse; later results are hardly related
CANDIDATES_PER_EXAMPLE = 4


def fold_question(text: str) -> str:
    r"""Return a question folded, without white space, control characters and punctuation.

    A text of nothing else keeps its punctuation.

    >>> fold_question("日本の　首都は、どこ？") == fold_question("日本の首都はどこ?\n")
    True
    >>> fold_question("？！")
    '?!'
    """
    return fold(text, drop=("C", "P", "Z")) or fold(text).strip()


class PoolQuestions:
    """The pool's questions, prepared for comparison with many tasks."""

    def __init__(self, questions: Sequence[str]) -> None:
        folded = map(fold_question, questions)
        self._ngrams = [ngram_set(text, SAME_TASK_NGRAM_CHARS) for text in folded]

    def positions_of(self, task: str) -> set[int]:
        """Return the positions of the questions that ask the same as ``task``.

        Their folded texts are equal to the task's, or their character 5-grams have a Jaccard
        similarity of at least ``SAME_TASK_JACCARD``.
        """
        asked = ngram_set(fold_question(task), SAME_TASK_NGRAM_CHARS)
        return {
            position
            for position, ngrams in enumerate(self._ngrams)
            # a cheap bound first: the smaller set bounds the intersection
            if min(len(asked), len(ngrams)) >= SAME_TASK_JACCARD * max(len(asked), len(ngrams))
            and jaccard(asked, ngrams) >= SAME_TASK_JACCARD
        }


def diversify(
    results: Sequence[Result], questions: Sequence[str], count: int, diversity: float
) -> list[Result]:
    """Choose ``count`` results that are similar to the task and dissimilar to each other.

    Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): repeatedly the result with the
    highest ``(1 - diversity) * relevance - diversity * redundancy``. Relevance is the score, scaled
    to 0 to 1 over the candidates of any retriever. Redundancy is the highest Jaccard similarity of
    character bigrams with a question chosen before. ``diversity`` 0 chooses the best, 1 only by
    redundancy after the first. ``questions`` are those of ``results``, which are best first; the
    chosen ones are returned in the same order.
    """
    ngrams = [ngram_set(fold_question(text), DIVERSITY_NGRAM_CHARS) for text in questions]
    relevance = _scale([result.score for result in results])
    redundancy = [0.0] * len(results)
    left = list(range(len(results)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        # of equal values max returns the first, which is the better result
        best = (
            max(left, key=lambda i: (1 - diversity) * relevance[i] - diversity * redundancy[i])
            if chosen
            else left[0]
        )
        chosen.append(best)
        left.remove(best)
        for i in left:
            redundancy[i] = max(redundancy[i], jaccard(ngrams[i], ngrams[best]))
    return [results[i] for i in sorted(chosen)]


def _scale(scores: Sequence[float]) -> list[float]:
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def find_examples(
    questions: list[str],
    pool: list[str],
    index: RetrievalIndex,
    checkpoint: ColbertCheckpoint,
    parameters: InferenceParameters,
) -> list[list[Result]]:
    """Return the results that become each task's examples, best first.

    ``pool`` has the pool's questions in the order of the index.

    Raises:
        InputError: The index was made with other weights.
    """
    count, diversity = parameters.top_k, parameters.example_diversity
    if not count:
        return [[] for _ in questions]
    same: list[set[int]] = [set() for _ in questions]
    if parameters.exclude_same_task:
        compared = PoolQuestions(pool)
        same = [compared.positions_of(question) for question in questions]
    # more, because some may be excluded, but not more than the pool has, of which retrieval warns
    per_example = 1 if diversity is None else CANDIDATES_PER_EXAMPLE
    wanted = count * per_example + max(map(len, same), default=0)
    results = retrieve(
        index,
        checkpoint,
        questions,
        max(count, min(wanted, len(pool))),
        max_query_tokens=parameters.max_query_tokens,
    )
    examples = []
    for found, excluded in zip(results, same, strict=True):
        candidates = [result for result in found if result.position not in excluded]
        if diversity is not None:
            asked = [pool[result.position] for result in candidates]
            candidates = diversify(candidates, asked, count, diversity)
        examples.append(candidates[:count])
    return examples


def fit_examples(
    examples: Sequence[dict[str, Any]],
    render: Callable[[Sequence[dict[str, Any]]], str],
    count_tokens: Callable[[str], int],
    room: int | None,
) -> tuple[Sequence[dict[str, Any]], str, int]:
    """Drop the first, least similar examples until ``room`` tokens hold the prompt.

    Returns:
        The remaining examples (all if ``room`` is None), the prompt and its tokens, which exceed
        ``room`` if the prompt does not fit even without examples.
    """
    while True:
        prompt = render(examples)
        tokens = count_tokens(prompt)
        if room is None or tokens <= room or not examples:
            return examples, prompt, tokens
        examples = examples[1:]
