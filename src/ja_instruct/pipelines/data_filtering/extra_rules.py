"""The rules beyond the recipe, applied to batches of pairs and to the pairs that are left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.batches import FIELDS, iterate_batches
from ja_instruct.pipelines.data_filtering.contamination import ContaminationIndex
from ja_instruct.pipelines.data_filtering.duplicates import (
    find_exact_duplicates,
    find_near_duplicates,
)
from ja_instruct.pipelines.data_filtering.quality import (
    find_citation_mark,
    find_cut_off,
    find_kana_gap,
    find_repetition,
)
from ja_instruct.pipelines.data_filtering.violations import (
    Violation,
    Violations,
    join_violations,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt
    from datasets import Dataset
    from tokenizers import Tokenizer

    from ja_instruct.pipelines.data_filtering.batches import PairBatch
    from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

    Check = Callable[[PairBatch], Violations]

# The tokenizer encodes a batch in parallel threads and keeps its encodings in memory, about 100
# bytes per token.
BATCH_TEXTS = 1000


@dataclass(frozen=True)
class TextCheck:
    """A rule for single texts.

    Attributes:
        rule: Id of the rule.
        fields: The fields to check.
        find: Returns the violating part of a text, or None.
    """

    rule: str
    fields: tuple[str, ...]
    find: Callable[[str], str | None]

    def __call__(self, batch: PairBatch) -> Violations:
        """Return the violations in a batch."""
        return Violations.from_list(
            Violation(row, self.rule, field, matched)
            for field, texts in zip(FIELDS, batch.fields, strict=True)
            if field in self.fields
            for row, text in enumerate(texts.array.to_pylist(), batch.start)
            if (matched := self.find(text))
        )


@dataclass(frozen=True)
class TokenCheck:
    """The limits on the tokens of a pair."""

    tokenizer: Tokenizer
    response_tokens_min: int
    pair_tokens_max: int

    def __call__(self, batch: PairBatch) -> Violations:
        """Return the pairs of a batch that are too short or too long, in the longer field."""
        counts = [
            measure_token_counts(texts.array.to_pylist(), self.tokenizer).tolist()
            for texts in batch.fields
        ]
        found = []
        for row, (instruction, response) in enumerate(zip(*counts, strict=True), batch.start):
            if response < self.response_tokens_min:
                field, matched = "response", f"{response} < {self.response_tokens_min}"
            elif instruction + response > self.pair_tokens_max:
                field = "instruction" if instruction > response else "response"
                matched = f"{instruction} + {response} > {self.pair_tokens_max}"
            else:
                continue
            found.append(Violation(row, "token_count", field, matched))
        return Violations.from_list(found)


def measure_token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return the number of tokens of each text, shape (texts,), without special tokens.

    Truncation and padding of the tokenizer are ignored, and the tokenizer is not changed. It works
    in threads of its own (``RAYON_NUM_THREADS`` limits them, ``TOKENIZERS_PARALLELISM=false``
    disables them).

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one token per character
    >>> measure_token_counts(["東京です。", "", "はい"], tokenizer).tolist()
    [5, 0, 2]
    """
    tokenizer = _copy_unbounded(tokenizer)
    counts = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = list(texts[start : start + BATCH_TEXTS])
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        counts[start : start + len(batch)] = [len(encoding) for encoding in encodings]
    return counts


def _copy_unbounded(tokenizer: Tokenizer) -> Tokenizer:
    """Return ``tokenizer``, or if it truncates or pads, a copy that does not."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def build_checks(
    parameters: DataFilteringParameters,
    pairs: Dataset,
    tokenizer: Tokenizer | None,
    tasks: Dataset,
) -> list[Check]:
    """Return the checks of ``extra_rules`` that apply to single pairs.

    Args:
        parameters: The parameters of the filter.
        pairs: All pairs, in which ``contamination`` counts stock phrases.
        tokenizer: For ``token_count``.
        tasks: For ``contamination``.

    Raises:
        InputError: A rule lacks its tokenizer or its tasks.
    """
    checks: dict[str, Callable[[], Check]] = {
        "token_count": lambda: _build_token_check(parameters, tokenizer),
        "citation_mark": lambda: TextCheck("citation_mark", FIELDS, find_citation_mark),
        "cut_off": lambda: TextCheck("cut_off", ("response",), find_cut_off),
        "repetition": lambda: TextCheck(
            "repetition",
            FIELDS,
            partial(
                find_repetition,
                sentence_percent_max=parameters.repeated_sentence_percent_max,
                ngram_percent_max=parameters.repeated_ngram_percent_max,
                ngram_letters_min=parameters.repeated_ngram_letters_min,
            ),
        ),
        "kana_share": lambda: TextCheck(
            "kana_share",
            FIELDS,
            partial(
                find_kana_gap,
                han_chars_max=parameters.han_chars_without_kana_max,
                foreign_chars_max=parameters.foreign_han_chars_without_kana_max,
            ),
        ),
        "contamination": lambda: _build_contamination_check(parameters, pairs, tasks),
    }
    return [build() for rule, build in checks.items() if rule in parameters.extra_rules]


def _build_token_check(parameters: DataFilteringParameters, tokenizer: Tokenizer | None) -> Check:
    if tokenizer is None:
        raise InputError(
            "data_filtering.extra_rules: 'token_count' needs 'target_tokenizer', which cannot be "
            "loaded; see the warning above, or remove the rule"
        )
    return TokenCheck(tokenizer, parameters.response_tokens_min, parameters.pair_tokens_max)


def _build_contamination_check(
    parameters: DataFilteringParameters, pairs: Dataset, tasks: Dataset
) -> Check:
    index = ContaminationIndex(
        tasks,
        ngram_chars=parameters.contamination_ngram_chars,
        share_min=parameters.contamination_share_min,
        stock_texts_max=parameters.contamination_stock_texts_max,
    )
    for batch in iterate_batches(pairs):
        for texts in batch.fields:
            index.count_stock_phrases(texts.array.to_pylist())

    def find(text: str) -> str | None:
        match = index.find(text)
        return None if match is None else f"task {match.task_id}: {match.matched}"

    return TextCheck("contamination", FIELDS, find)


def find_duplicates(
    pairs: Dataset, rows: npt.NDArray[np.int64], parameters: DataFilteringParameters
) -> Violations:
    """Find the pairs among ``rows`` that repeat an earlier one of them.

    Each rule checks the pairs left by the one before it, so that no pair is dropped as a duplicate
    of a pair that is dropped itself.

    Args:
        pairs: All pairs.
        rows: The rows without a violation, in ascending order.
        parameters: The parameters of the filter.
    """
    fields = pairs.select_columns(list(FIELDS))

    def read_pair(row: int) -> tuple[str, str]:
        pair = fields[row]
        return pair["instruction"], pair["response"]

    def find_exact(some: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, str]]:
        for row, earlier in find_exact_duplicates(some):
            yield row, f"record {earlier + 1}"

    def find_near(some: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, str]]:
        for row, earlier, similarity in find_near_duplicates(
            some, read_pair=read_pair, jaccard_min=parameters.near_duplicate_jaccard_min
        ):
            yield row, f"record {earlier + 1}, similarity {similarity:.2f}"

    parts = []
    for rule, find in {"exact_duplicate": find_exact, "near_duplicate": find_near}.items():
        if rule in parameters.extra_rules:
            found = Violations.from_list(
                Violation(row, rule, "pair", matched)
                for row, matched in find(_iterate(pairs, rows))
            )
            parts.append(found)
            rows = np.setdiff1d(rows, found.column("row"))
    return join_violations(parts)


def _iterate(pairs: Dataset, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
    for batch in iterate_batches(pairs.select(rows)):
        numbers = rows[batch.start : batch.start + len(batch)].tolist()
        texts = (texts.array.to_pylist() for texts in batch.fields)
        yield from zip(numbers, *texts, strict=True)
