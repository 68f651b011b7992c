"""The rules beyond the recipe, applied to batches of pairs and to the pairs that are left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.batches import (
    FIELDS,
    HISTORY,
    KINDS,
    as_line,
    filtered_columns,
    iterate_batches,
)
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
from ja_instruct.pipelines.data_filtering.violations import Violation, Violations, join_violations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import numpy.typing as npt
    from datasets import Dataset
    from tokenizers import Tokenizer

    from ja_instruct.pipelines.data_filtering.batches import PairBatch
    from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

    Check = Callable[[PairBatch], Violations]
    Find = Callable[[str], str | None]

# The tokenizer encodes a batch in parallel threads and keeps its encodings in memory, about 100
# bytes per token.
BATCH_TEXTS = 1000


def check_texts(batch: PairBatch, rule: str, find: Find, kinds: Collection[str]) -> Violations:
    """Apply a rule for single texts; ``find`` returns the violating part of a text, or None."""
    return Violations.from_list(
        Violation(row, rule, part.place, matched)
        for part in batch.parts
        if part.kind in kinds
        for row, text in zip(part.rows.tolist(), part.texts.array.to_pylist(), strict=True)
        if (matched := find(text))
    )


def check_token_counts(
    batch: PairBatch, tokenizer: Tokenizer, response_tokens_min: int, pair_tokens_max: int
) -> Violations:
    """Find the pairs that are too short or too long, the latter in their longest part."""
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for part in batch.parts:
        tokens = measure_token_counts(part.texts.array.to_pylist(), tokenizer)
        in_place = counts.setdefault(part.place, np.zeros(len(batch), np.int64))
        np.add.at(in_place, part.rows - batch.start, tokens)
    # in the order of the prompt; of two equally long parts the later one is named
    places = [place for place in (HISTORY, *FIELDS) if place in counts]
    found = []
    columns = [counts[place].tolist() for place in places]
    for row, lengths in enumerate(zip(*columns, strict=True), batch.start):
        if lengths[-1] < response_tokens_min:
            place, matched = "response", f"{lengths[-1]} < {response_tokens_min}"
        elif sum(lengths) > pair_tokens_max:
            place = max(zip(lengths, range(len(places)), places, strict=True))[-1]
            matched = f"{' + '.join(map(str, lengths))} > {pair_tokens_max}"
        else:
            continue
        found.append(Violation(row, "token_count", place, matched))
    return Violations.from_list(found)


def measure_token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return the number of tokens of each text, shape (texts,), without special tokens.

    The spelling of a special token counts as text. Truncation and padding of the tokenizer are
    ignored, and the tokenizer is not changed. It works in threads of its own
    (``RAYON_NUM_THREADS`` limits them, ``TOKENIZERS_PARALLELISM=false`` disables them).
    """
    is_plain = tokenizer.truncation is None and tokenizer.padding is None
    if not (is_plain and tokenizer.encode_special_tokens):
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
    counts = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = list(texts[start : start + BATCH_TEXTS])
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        counts[start : start + len(batch)] = [len(encoding) for encoding in encodings]
    return counts


def build_checks(
    parameters: DataFilteringParameters,
    pairs: Dataset,
    tokenizer: Tokenizer | None,
    tasks: Dataset,
) -> list[Check]:
    """Return the checks of ``extra_rules`` that apply to single pairs.

    The rule ``contamination`` counts stock phrases in all ``pairs``.

    Raises:
        InputError: A rule lacks its tokenizer or its tasks.
    """
    repetition = partial(
        find_repetition,
        sentence_percent_max=parameters.repeated_sentence_percent_max,
        ngram_percent_max=parameters.repeated_ngram_percent_max,
        ngram_letters_min=parameters.repeated_ngram_letters_min,
    )
    kana_gap = partial(
        find_kana_gap,
        han_chars_max=parameters.han_chars_without_kana_max,
        foreign_chars_max=parameters.foreign_han_chars_without_kana_max,
    )
    text_rules: dict[str, tuple[Find, Collection[str]]] = {
        "citation_mark": (find_citation_mark, KINDS.values()),
        "cut_off": (find_cut_off, ("response",)),
        "repetition": (repetition, KINDS.values()),
        "kana_share": (kana_gap, KINDS.values()),
    }
    checks: list[Check] = [
        partial(check_texts, rule=rule, find=find, kinds=kinds)
        for rule, (find, kinds) in text_rules.items()
        if rule in parameters.extra_rules
    ]
    if "token_count" in parameters.extra_rules:
        checks.append(_build_token_check(parameters, tokenizer))
    if "contamination" in parameters.extra_rules:
        checks.append(_build_contamination_check(parameters, pairs, tasks))
    return checks


def _build_token_check(parameters: DataFilteringParameters, tokenizer: Tokenizer | None) -> Check:
    if tokenizer is None:
        raise InputError(
            "data_filtering.extra_rules: 'token_count' needs 'target_tokenizer', which cannot be "
            "loaded; see the warning above, or remove the rule"
        )
    return partial(
        check_token_counts,
        tokenizer=tokenizer,
        response_tokens_min=parameters.response_tokens_min,
        pair_tokens_max=parameters.pair_tokens_max,
    )


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
        for part in batch.parts:
            index.count_stock_phrases(part.texts.array.to_pylist())

    def find(text: str) -> str | None:
        match = index.find(text)
        return None if match is None else f"task {match.task_id}: {match.matched}"

    return partial(check_texts, rule="contamination", find=find, kinds=KINDS.values())


def find_duplicates(
    pairs: Dataset, rows: npt.NDArray[np.int64], parameters: DataFilteringParameters
) -> Violations:
    """Find the pairs among ``rows`` that repeat an earlier one of them.

    Each rule checks the pairs left by the one before it, so that no pair is dropped as a duplicate
    of a pair that is dropped itself. ``rows``, those without a violation, must ascend.
    """
    texts = pairs.select_columns(filtered_columns(pairs.column_names))

    def read_pair(row: int) -> tuple[str, str]:
        pair = texts[row]
        before = (as_line(turn["role"], turn["content"]) for turn in pair.get(HISTORY) or ())
        return "".join(before) + pair["instruction"], pair["response"]

    found = []
    if "exact_duplicate" in parameters.extra_rules:
        for row, earlier in find_exact_duplicates(_iterate(pairs, rows)):
            found.append(Violation(row, "exact_duplicate", "pair", f"record {earlier + 1}"))
        rows = np.setdiff1d(rows, [violation.row for violation in found])
    if "near_duplicate" in parameters.extra_rules:
        jaccard_min = parameters.near_duplicate_jaccard_min
        for row, earlier, similarity in find_near_duplicates(
            _iterate(pairs, rows), read_pair=read_pair, jaccard_min=jaccard_min
        ):
            matched = f"record {earlier + 1}, similarity {similarity:.2f}"
            found.append(Violation(row, "near_duplicate", "pair", matched))
    return join_violations([Violations.from_list(found)])


def _iterate(pairs: Dataset, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
    for batch in iterate_batches(pairs.select(rows)):
        numbers = rows[batch.start : batch.start + len(batch)].tolist()
        yield from zip(numbers, *batch.compared(), strict=True)
