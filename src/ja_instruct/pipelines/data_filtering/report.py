"""The parts of ``filter_report``: what each rule dropped, in counts, examples and lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ja_instruct.pipelines.data_filtering.batches import (
    FIELDS,
    HISTORY,
    as_one_array,
    filtered_columns,
    iterate_batches,
)
from ja_instruct.pipelines.data_filtering.extra_rules import measure_token_counts
from ja_instruct.pipelines.data_filtering.extraction import EXCHANGE
from ja_instruct.pipelines.data_filtering.language import find_other_languages
from ja_instruct.pipelines.data_filtering.violations import PLACES, RULES, Violations

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from datasets import Dataset
    from tokenizers import Tokenizer

EXAMPLES_PER_RULE = 10
EXAMPLE_CHARS = 200
LANGUAGE_SAMPLE = 200
TOKEN_SAMPLE = 2000

Lengths = dict[str, "npt.NDArray[np.int64]"]


def count_rules(violations: Violations) -> dict[str, dict[str, int]]:
    """Count the rejected pairs in three ways.

    Returns:
        ``rejected_by_rule`` counts a pair once for each rule that it violates,
        ``rejected_by_first_rule`` once for the first of them, and ``rejected_by_rule_alone`` only
        if it violates a single rule, without which it would have been kept.
    """
    rows, rules = violations.rules_of_rows
    _, first = np.unique(rows, return_index=True)
    return {
        "rejected_by_rule": _by_rule(rules),
        "rejected_by_first_rule": _by_rule(rules[first]),
        "rejected_by_rule_alone": _by_rule(violations.single_rules[1]),
    }


def count_matches(violations: Violations, rule: str) -> dict[str, dict[str, int]]:
    """Count the pairs with each text that a rule matched.

    Returns:
        By text, the most frequent first: ``pairs`` with it, and ``alone``, those of them without
        any other violation.
    """
    codes = as_one_array(violations.table.column("matched")).dictionary_encode()
    texts = codes.dictionary.to_pylist()
    keys = violations.column("rule").astype(np.int64) * max(len(texts), 1)
    keys += codes.indices.to_numpy()
    rows, keys = np.unique(np.stack([violations.column("row"), keys]), axis=1)
    _, inverse, times = np.unique(rows, return_inverse=True, return_counts=True)
    rules, matched = np.divmod(keys, max(len(texts), 1))
    of_rule = rules == RULES.index(rule)
    pairs = np.bincount(matched[of_rule], minlength=len(texts))
    alone = np.bincount(matched[of_rule & (times[inverse] == 1)], minlength=len(texts))
    order = np.argsort(-pairs, kind="stable")
    return {
        texts[code]: {"pairs": int(pairs[code]), "alone": int(alone[code])}
        for code in order.tolist()
        if pairs[code]
    }


def describe_characters(
    characters: Mapping[str, int], violations: Violations, rule: str
) -> dict[str, Any]:
    """Return the characters that a rule bans, and how many pairs contain each of them."""
    return {
        "count": len(characters),
        "characters": "".join(characters),
        "found": {
            character: {
                "code_point": f"U+{ord(character):04X}",
                "times": characters[character],
                **counted,
            }
            for character, counted in count_matches(violations, rule).items()
        },
    }


def estimate_good_data(
    pairs: Dataset, violations: Violations, language: str, percent_min: int
) -> dict[str, dict[str, int]]:
    """Estimate how many pairs in the right language each rule drops that no other rule drops.

    CLD2 has not seen the pairs dropped by cheaper rules, so it runs on an evenly spaced sample.

    Returns:
        By rule: ``alone``, the pairs that violate only this rule; ``sampled``, how many of them
        CLD2 checked; ``in_language``, how many of these are in the language; ``estimate``, the same
        extrapolated to all of ``alone``.
    """
    estimates = {}
    single_rows, single_rules = violations.single_rules
    for position, rule in enumerate(RULES):
        rows = single_rows[single_rules == position]
        sample = spread(rows, LANGUAGE_SAMPLE)
        rejected = 0
        for batch in iterate_batches(pairs.select(sample)):
            found = find_other_languages(batch, np.arange(len(batch)), language, percent_min)
            rejected += len(found.rejected_rows())
        passed = len(sample) - rejected
        estimates[rule] = {
            "alone": len(rows),
            "sampled": len(sample),
            "in_language": passed,
            "estimate": round(len(rows) * passed / len(sample)) if len(sample) else 0,
        }
    return estimates


def pick_examples(pairs: Dataset, violations: Violations) -> dict[str, list[dict[str, Any]]]:
    """Return up to ten evenly spaced pairs that violate each rule, cut around the match.

    ``record`` counts from 1 in the order of the pairs, of which a conversation may have several.
    """
    names = filtered_columns(pairs.column_names)
    examples: dict[str, list[dict[str, Any]]] = {}
    for rule in RULES:
        found = violations.of_rule(rule)
        rows = found.column("row").to_numpy()
        _, first = np.unique(rows, return_index=True)
        first = spread(first, EXAMPLES_PER_RULE)
        texts = pairs.select(rows[first]).select_columns(names).to_list()
        examples[rule] = []
        for place, pair in zip(first.tolist(), texts, strict=True):
            field = PLACES[found.column("field")[place].as_py()]
            matched = found.column("matched")[place].as_py()
            if HISTORY in pair:
                pair[HISTORY] = "\n".join(turn["content"] for turn in pair[HISTORY])
            cut = {
                name: _cut(text, matched if name == field else "") for name, text in pair.items()
            }
            record = int(rows[place]) + 1
            examples[rule].append({"record": record, "side": field, "matched": matched, **cut})
    return examples


def count_conversations(pairs: Dataset) -> dict[str, int]:
    """Count what a pair is not enough to describe.

    Returns:
        ``conversations`` if one may give several pairs; ``history_turns``, the turns before all
        pairs, if they are kept.
    """
    counts = {}
    if EXCHANGE in pairs.column_names:
        counts["conversations"] = pairs[EXCHANGE][:].count(1)
    if HISTORY in pairs.column_names:
        histories = [batch.history for batch in iterate_batches(pairs)]
        counts["history_turns"] = sum(len(one.roles) for one in histories if one is not None)
    return counts


def compare_characters(before: Dataset, after: Dataset) -> dict[str, Any]:
    """Describe the lengths of both fields in characters, before and after the filter."""
    return _compare(_measure_characters(before), _measure_characters(after))


def compare_tokens(
    before: Dataset, after: Dataset, tokenizer: Tokenizer | None
) -> dict[str, Any] | None:
    """Describe the same in tokens, on evenly spaced samples; None without a tokenizer."""
    if tokenizer is None:
        return None
    return _compare(_measure_tokens(before, tokenizer), _measure_tokens(after, tokenizer))


def _measure_characters(pairs: Dataset) -> Lengths:
    batches = [[texts.lengths for texts in batch.fields] for batch in iterate_batches(pairs)]
    empty = np.empty(0, np.int64)
    return {
        name: np.concatenate([empty, *(lengths[field] for lengths in batches)])
        for field, name in enumerate(FIELDS)
    }


def _measure_tokens(pairs: Dataset, tokenizer: Tokenizer) -> Lengths:
    sample = pairs.select(spread(np.arange(len(pairs)), TOKEN_SAMPLE))
    return {name: measure_token_counts(sample[name][:], tokenizer) for name in FIELDS}


def _compare(before: Lengths, after: Lengths) -> dict[str, Any]:
    longest = max(max(texts, default=0) for part in (before, after) for texts in part.values())
    edges = make_edges(int(longest))
    return {
        "edges": edges,
        "before": {field: describe_lengths(lengths, edges) for field, lengths in before.items()},
        "after": {field: describe_lengths(lengths, edges) for field, lengths in after.items()},
    }


def describe_lengths(lengths: npt.NDArray[np.int64], edges: list[int]) -> dict[str, Any]:
    """Return mean, quantiles and a histogram with these bin edges; zeros without texts."""
    values = lengths if len(lengths) else np.zeros(1, np.int64)
    quantiles = {"p5": 5, "median": 50, "p95": 95}
    return {
        "texts": len(lengths),
        "mean": round(float(np.mean(values)), 1),
        **{name: round(float(np.percentile(values, at)), 1) for name, at in quantiles.items()},
        "max": int(np.max(values)),
        "histogram": np.histogram(lengths, edges)[0].tolist(),
    }


def make_edges(longest: int) -> list[int]:
    """Return bin edges from 0 beyond ``longest``, each bin a fifth wider than the one before.

    >>> make_edges(30)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 29, 35]
    """
    edges = [0, 1]
    while edges[-1] <= longest:
        edges.append(max(edges[-1] + 1, round(edges[-1] * 1.2)))
    return edges


def spread(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return up to ``count`` of the values, evenly spaced, in order.

    >>> spread(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(values) <= count:
        return values
    return values[np.linspace(0, len(values) - 1, count).round().astype(np.int64)]


def _by_rule(rules: npt.NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(rules, minlength=len(RULES)).tolist()
    return dict(zip(RULES, counts, strict=True))


def _cut(text: str, matched: str) -> str:
    """Return the part of a text around the match, or its beginning."""
    place = max(text.find(matched), 0) if matched else 0
    start = max(0, min(place - EXAMPLE_CHARS // 2, len(text) - EXAMPLE_CHARS))
    end = start + EXAMPLE_CHARS
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
