"""The rules beyond the recipe that need no other pair, as they are asked of batches."""

from __future__ import annotations

import time
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
from ja_instruct.pipelines.data_filtering.token_lengths import (
    find_token_count,
    measure_token_counts,
)
from ja_instruct.pipelines.data_filtering.violations import (
    PLACES,
    Violations,
    join_violations,
    make_violations,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from datasets import Dataset
    from tokenizers import Tokenizer

    from ja_instruct.pipelines.data_filtering.batches import PairBatch
    from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

    Check = Callable[[PairBatch], list[Violations]]


@dataclass(frozen=True)
class TextCheck:
    """A rule that looks at one text at a time, and the fields that it is asked about."""

    rule: str
    fields: tuple[int, ...]
    find: Callable[[str], str | None]

    def __call__(self, batch: PairBatch) -> list[Violations]:
        """Return what the rule finds in a batch."""
        parts = []
        for field in self.fields:
            started = time.perf_counter()
            texts = batch.fields[field].array.to_pylist()
            found = [(row, told) for row, text in enumerate(texts) if (told := self.find(text))]
            rows = np.array([row for row, _ in found], np.int64) + batch.start
            seconds = {self.rule: time.perf_counter() - started}
            parts.append(
                make_violations(rows, self.rule, field, [told for _, told in found], seconds)
            )
        return parts


@dataclass(frozen=True)
class TokenCheck:
    """The bounds on the tokens of a pair."""

    tokenizer: Tokenizer
    response_tokens_min: int
    pair_tokens_max: int

    def __call__(self, batch: PairBatch) -> list[Violations]:
        """Return the pairs of a batch that are too short or too long."""
        started = time.perf_counter()
        counts = [
            measure_token_counts(field.array.to_pylist(), self.tokenizer).tolist()
            for field in batch.fields
        ]
        bounds = {
            "response_tokens_min": self.response_tokens_min,
            "pair_tokens_max": self.pair_tokens_max,
        }
        parts: list[Violations] = []
        for row, (instruction, response) in enumerate(zip(*counts, strict=True), batch.start):
            found = find_token_count(instruction, response, **bounds)
            if found is not None:
                field = FIELDS.index(found.field)
                parts.append(
                    make_violations(np.array([row]), "token_count", field, [found.matched])
                )
        seconds = {"token_count": time.perf_counter() - started}
        return [*parts, make_violations(np.empty(0, np.int64), "token_count", 0, [], seconds)]


def build_checks(
    parameters: DataFilteringParameters,
    pairs: Dataset,
    tokenizer: Tokenizer | None,
    tasks: Dataset,
) -> list[Check]:
    """Return the checks that ``extra_rules`` asks for.

    Args:
        parameters: Of the filter.
        pairs: Counted for phrases that are too common to be a task's.
        tokenizer: For ``token_count``.
        tasks: For ``contamination``.

    Raises:
        InputError: A rule lacks what it needs: the tokenizer, or the tasks.
    """
    wanted = parameters.extra_rules
    checks: list[Check] = []
    if "token_count" in wanted:
        if tokenizer is None:
            raise InputError(
                "data_filtering.extra_rules: 'token_count' needs 'target_tokenizer', which "
                "cannot be had; see the warning above, or leave the rule out"
            )
        bounds = (parameters.response_tokens_min, parameters.pair_tokens_max)
        checks.append(TokenCheck(tokenizer, *bounds))
    finders: dict[str, tuple[tuple[int, ...], Callable[[str], str | None]]] = {
        "citation_mark": ((0, 1), find_citation_mark),
        "cut_off": ((1,), find_cut_off),
        "repetition": (
            (0, 1),
            partial(
                find_repetition,
                sentence_percent_max=parameters.repeated_sentence_percent_max,
                ngram_percent_max=parameters.repeated_ngram_percent_max,
                ngram_letters_min=parameters.repeated_ngram_letters_min,
            ),
        ),
        "kana_share": (
            (0, 1),
            partial(
                find_kana_gap,
                han_chars_max=parameters.han_chars_without_kana_max,
                foreign_chars_max=parameters.foreign_han_chars_without_kana_max,
            ),
        ),
    }
    checks += [TextCheck(rule, *how) for rule, how in finders.items() if rule in wanted]
    if "contamination" in wanted:
        checks.append(_build_contamination_check(parameters, pairs, tasks))
    return checks


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
        for field in batch.fields:
            index.count_stock_phrases(field.array.to_pylist())

    def find(text: str) -> str | None:
        match = index.find(text)
        return None if match is None else f"task {match.task_id}: {match.matched}"

    return TextCheck("contamination", (0, 1), find)


def find_duplicates(
    pairs: Dataset, rows: npt.NDArray[np.int64], parameters: DataFilteringParameters
) -> Violations:
    """Find the pairs among ``rows`` that repeat an earlier one of them.

    Each rule is asked about what the ones before it leave, so that no pair is dropped for the sake
    of one that is dropped itself.

    Args:
        pairs: All pairs.
        rows: Those with nothing against them, ascending.
        parameters: Of the filter.
    """
    left = rows
    parts = []
    for rule, find in _choose_finders(pairs, parameters).items():
        started = time.perf_counter()
        found = list(find(_iterate(pairs, left)))
        repeated = np.array([row for row, _ in found], np.int64)
        seconds = {rule: time.perf_counter() - started}
        told = [message for _, message in found]
        parts.append(make_violations(repeated, rule, PLACES.index("pair"), told, seconds))
        left = np.setdiff1d(left, repeated)
    return join_violations(parts)


def _choose_finders(
    pairs: Dataset, parameters: DataFilteringParameters
) -> dict[str, Callable[[Iterable[tuple[int, str, str]]], Iterator[tuple[int, str]]]]:
    def exact(some: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, str]]:
        for row, earlier in find_exact_duplicates(some):
            yield row, f"record {earlier + 1}"

    def near(some: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, str]]:
        for row, earlier, similarity in find_near_duplicates(
            some, read_pair=read_pair, jaccard_min=parameters.near_duplicate_jaccard_min
        ):
            yield row, f"record {earlier + 1}, similarity {similarity:.2f}"

    def read_pair(row: int) -> tuple[str, str]:
        pair = fields[row]
        return pair["instruction"], pair["response"]

    fields = pairs.select_columns(list(FIELDS))
    finders = {"exact_duplicate": exact, "near_duplicate": near}
    return {rule: find for rule, find in finders.items() if rule in parameters.extra_rules}


def _iterate(pairs: Dataset, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
    for batch in iterate_batches(pairs.select(rows)):
        numbers = rows[batch.start : batch.start + len(batch)].tolist()
        texts = (field.array.to_pylist() for field in batch.fields)
        yield from zip(numbers, *texts, strict=True)
