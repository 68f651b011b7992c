"""The steps of the filter, in the order of the recipe.

The method is that of the recipe's data filtering: repair known slips by a replacement table, then
drop pairs with banned substrings, with characters that are rare in the corpus (typical of a model
that drifts into another language), and with a side that CLD2 does not find to be Japanese.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import rules
from ja_instruct.pipelines.data_filtering.columns import (
    append_columns,
    build_verdicts,
    find_rows,
    iterate_pairs,
    iterate_rejections,
    put_pairs_first,
)
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters
from ja_instruct.pipelines.data_filtering.rules import Pair, Rejection, WordLists
from ja_instruct.records import as_dataset, require_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from datasets import Dataset
else:
    # Kedro validates the parameters of a node only when all its hints resolve at run time, and
    # importing datasets takes a second that `kedro registry list` need not wait for.
    Dataset = Any

logger = logging.getLogger(__name__)

EXAMPLES_PER_RULE = 3
EXAMPLE_CHARS = 200


def check_word_lists(
    replacements: list[dict[str, str]],
    banned_substrings: list[str],
    banned_instruction_substrings: list[str],
) -> WordLists:
    """Return the word lists in one piece, refusing those that cannot be meant.

    Raises:
        InputError: When an entry is empty, doubled or no text.
    """
    return rules.read_word_lists(replacements, banned_substrings, banned_instruction_substrings)


def extract_pairs(raw_conversations: Dataset) -> Dataset:
    """Put ``instruction`` and ``response``, the first turn of each side, before the source.

    A side is "" when the conversation has no such turn, or the turn no content. Columns of these
    names in the source are replaced; the others stay as they are, in their order.

    Raises:
        InputError: When there is no column ``conversations``, or a record's is no list of turns.
    """
    source = as_dataset(raw_conversations, "raw_conversations")
    require_columns(source, ["conversations"], "raw_conversations")
    pairs: list[Pair] = []
    for batch in source.select_columns(["conversations"]).iter(batch_size=1000):
        for turns in batch["conversations"]:
            number = len(pairs) + 1
            pairs.append(
                Pair(_first_text(turns, "user", number), _first_text(turns, "assistant", number))
            )
    return put_pairs_first(source, pairs)


def find_rare_characters(
    conversation_pairs: Dataset, parameters: DataFilteringParameters
) -> dict[str, int]:
    """Return the characters held ``rare_char_count_max`` times or fewer, with their counts."""
    counts = _count_characters(iterate_pairs(conversation_pairs))
    return _pick(counts, lambda count: count <= parameters.rare_char_count_max)


def apply_replacements(
    conversation_pairs: Dataset, word_lists: WordLists
) -> tuple[Dataset, dict[str, int]]:
    """Apply the replacement table, in its order, to both sides.

    Returns:
        The pairs, and for each text of the table the number of pairs that it changed.
    """
    touched = {replacement.find: 0 for replacement in word_lists.replacements}
    pairs: list[Pair] = []
    for instruction, response in iterate_pairs(conversation_pairs):
        for find, replace in word_lists.replacements:
            if find in instruction or find in response:
                touched[find] += 1
                instruction = instruction.replace(find, replace)
                response = response.replace(find, replace)
        pairs.append(Pair(instruction, response))
    return put_pairs_first(conversation_pairs, pairs), touched


def judge_pairs(
    cleaned_pairs: Dataset,
    rare_characters: dict[str, int],
    word_lists: WordLists,
    parameters: DataFilteringParameters,
) -> Dataset:
    """Judge each pair by every rule that needs no other pair.

    Returns:
        One row a pair: ``reason`` (the first rule against it, null for a pair to keep),
        ``reasons`` (all rules against it, in the order of the recipe) and ``reason_details``
        (what each found).
    """
    judges: list[Callable[[Pair], Rejection | None]] = [
        partial(rules.banned_substring, banned=word_lists.banned),
        partial(rules.banned_instruction_substring, banned=word_lists.banned_in_instruction),
        partial(rules.rare_character, characters=rare_characters),
        partial(
            rules.language,
            code=parameters.language,
            percent_min=parameters.language_percent_min,
        ),
    ]
    pairs = tqdm(
        iterate_pairs(cleaned_pairs), total=len(cleaned_pairs), desc="data_filtering", unit="pair"
    )
    return build_verdicts(
        [rejection for judge in judges if (rejection := judge(pair)) is not None] for pair in pairs
    )


def judge_survivors(
    cleaned_pairs: Dataset, first_verdicts: Dataset, parameters: DataFilteringParameters
) -> tuple[Dataset, dict[str, int]]:
    """Judge the pairs that ``first_verdicts`` keep by the characters that they hold together.

    Returns:
        The verdicts on all pairs, and the characters held fewer than ``survivor_char_count_min``
        times, with their counts.
    """
    survivors = cleaned_pairs.select(find_rows(first_verdicts, kept=True))
    counts = _count_characters(iterate_pairs(survivors))
    characters = _pick(counts, lambda count: count < parameters.survivor_char_count_min)

    def judge(pair: Pair, earlier: list[Rejection]) -> list[Rejection]:
        if earlier:
            return earlier
        rejection = rules.rare_survivor_character(pair, characters)
        return [] if rejection is None else [rejection]

    pairs = iterate_pairs(cleaned_pairs)
    return build_verdicts(map(judge, pairs, iterate_rejections(first_verdicts))), characters


def split_pairs(cleaned_pairs: Dataset, verdicts: Dataset) -> tuple[Dataset, Dataset]:
    """Return the pairs to keep and those to drop, each in source order.

    The rejects end in the columns ``reason`` (the first rule against them), ``reasons`` (all of
    them) and ``reason_details`` (what each found), replacing the source's of the same names.
    """
    filtered_pairs = cleaned_pairs.select(find_rows(verdicts, kept=True))
    rejected_pairs = append_columns(cleaned_pairs, verdicts).select(find_rows(verdicts, kept=False))
    logger.info("Kept %d of %d pairs", len(filtered_pairs), len(cleaned_pairs))
    if not len(filtered_pairs):
        logger.warning(
            "No pair is left; filter_report counts what each rule dropped. A corpus much smaller "
            "than the recipe's 130,000 needs a lower rare_char_count_max and "
            "survivor_char_count_min"
        )
    return filtered_pairs, rejected_pairs


def report_filtering(
    conversation_pairs: Dataset,
    cleaned_pairs: Dataset,
    verdicts: Dataset,
    rare_characters: dict[str, int],
    rare_survivor_characters: dict[str, int],
    replacement_counts: dict[str, int],
) -> dict[str, Any]:
    """Count what each step did, with examples of what each rule dropped.

    Returns:
        Counts are of pairs, lengths are in characters. ``rejected_by_rule`` counts a pair once for
        each rule against it, ``rejected_by_first_rule`` once.
    """
    kept = find_rows(verdicts, kept=True)
    rejected = find_rows(verdicts, kept=False)
    reasons = Counter(rule for against in verdicts["reasons"] for rule in against)
    first_reasons = Counter(verdicts["reason"])
    return {
        "summary": {
            "read": len(verdicts),
            "kept": len(kept),
            "rejected": len(rejected),
            "kept_percent": round(100 * len(kept) / len(verdicts), 2) if len(verdicts) else 0.0,
        },
        "rejected_by_rule": {rule: reasons[rule] for rule in rules.RULES},
        "rejected_by_first_rule": {rule: first_reasons[rule] for rule in rules.RULES},
        "replacements": dict(replacement_counts),
        "rare_characters": _describe_characters(rare_characters),
        "rare_survivor_characters": _describe_characters(rare_survivor_characters),
        "examples": _find_examples(cleaned_pairs, verdicts),
        "lengths": {
            "before": _measure_lengths(conversation_pairs),
            "after": _measure_lengths(cleaned_pairs.select(kept)),
        },
    }


def _first_text(turns: Any, role: str, number: int) -> str:
    """Return the content of the first turn of ``role``; ``number`` is the record's, from 1."""
    for turn in turns or []:
        if turn is None:
            continue
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str | None):
            raise InputError(
                f"'raw_conversations', record {number}: 'conversations' must be a list of turns, "
                f"each a mapping with the texts 'role' and 'content', but holds {turn!r:.100}"
            )
        if turn.get("role") == role:
            return turn.get("content") or ""
    return ""


def _count_characters(pairs: Iterable[Pair]) -> Counter[str]:
    """Count as the recipe does: of each pair the response, a space and the instruction."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts.update(f"{pair.response} {pair.instruction}")
    return counts


def _pick(counts: Counter[str], wanted: Callable[[int], bool]) -> dict[str, int]:
    return {
        character: counts[character] for character in sorted(counts) if wanted(counts[character])
    }


def _describe_characters(characters: dict[str, int]) -> dict[str, Any]:
    return {"count": len(characters), "characters": "".join(characters)}


def _find_examples(pairs: Dataset, verdicts: Dataset) -> dict[str, list[dict[str, str]]]:
    """Return the first pairs that each rule is against, their texts cut short."""
    examples: dict[str, list[dict[str, str]]] = {rule: [] for rule in rules.RULES}
    for pair, rejections in zip(iterate_pairs(pairs), iterate_rejections(verdicts), strict=True):
        texts = {side: text[:EXAMPLE_CHARS] for side, text in pair._asdict().items()}
        for rule, detail in rejections:
            if len(examples[rule]) < EXAMPLES_PER_RULE:
                examples[rule].append({"detail": detail, **texts})
    return examples


def _measure_lengths(pairs: Dataset) -> dict[str, dict[str, float]]:
    """Return mean, median and 95th percentile of each side, in characters; 0 without pairs."""
    import numpy as np

    lengths = np.array([[len(text) for text in pair] for pair in iterate_pairs(pairs)] or [[0, 0]])
    return {
        side: {
            "mean": round(float(np.mean(column)), 1),
            "median": float(np.median(column)),
            "p95": round(float(np.percentile(column, 95)), 1),
        }
        for side, column in zip(Pair._fields, lengths.T, strict=True)
    }
