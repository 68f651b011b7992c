"""The steps of the filter, in the order of the recipe.

The recipe repairs known slips with a replacement table, then drops pairs with banned substrings,
with characters that are rare in the corpus (typical of a model that drifts into another language),
and with a field that CLD2 does not detect as Japanese.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ja_instruct.pipelines.data_filtering import report
from ja_instruct.pipelines.data_filtering.batches import (
    ROWS_PER_BATCH,
    PairBatch,
    filtered_columns,
    iterate_batches,
    map_in_threads,
)
from ja_instruct.pipelines.data_filtering.extra_rules import build_checks, find_duplicates
from ja_instruct.pipelines.data_filtering.extraction import extract_records
from ja_instruct.pipelines.data_filtering.language import find_other_languages, start_detectors
from ja_instruct.pipelines.data_filtering.pairs import (
    replace_columns,
    select_rows,
    set_bad_records_aside,
)
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters
from ja_instruct.pipelines.data_filtering.substrings import (
    Banned,
    build_candidate_automaton,
    count_characters,
    find_banned,
    pick_characters,
    replace_in_batch,
)
from ja_instruct.pipelines.data_filtering.violations import (
    Violations,
    build_reasons,
    join_violations,
)
from ja_instruct.tables.columns import as_dataset, require_columns
from ja_instruct.tables.json_text import text_columns
from ja_instruct.tables.word_lists import Replacement, read_replacements, read_substrings
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from datasets import Dataset
    from tokenizers import Tokenizer
else:
    # Kedro validates a node's parameters only if all its hints resolve at run time; importing
    # datasets takes a second, which `kedro registry list` should not wait for.
    Dataset = Tokenizer = Any

logger = logging.getLogger(__name__)


@unaffected_by(
    "params:data_filtering",
    but=(
        "params:data_filtering.multi_turn",
        "params:data_filtering.system_turns",
        "params:data_filtering.assistant_first",
    ),
)
def extract_pairs(
    raw_conversations: Dataset, parameters: DataFilteringParameters
) -> tuple[Dataset, Dataset, Violations]:
    """Add the columns ``instruction`` and ``response``, and ``history`` and ``exchange`` if needed.

    A field is "" without such a turn or its content; ``exchanges`` describes which turns are used.
    The source's columns ``instruction`` and ``response`` are replaced, its ``history`` and
    ``exchange`` renamed; the others follow unchanged, in their order.

    Returns:
        The pairs; the records that could not be read (``source``, ``line``, ``error``, ``text``);
        and what the order of turns violates.

    Raises:
        InputError: There is no column ``conversations``, a conversation is not a list of turns, or
            more records than ``bad_records_max`` could not be read.
    """
    source = as_dataset(raw_conversations, "raw_conversations")
    require_columns(source, ["conversations"], "raw_conversations")
    source, quarantined = set_bad_records_aside(source, parameters.bad_records_max)
    pairs, turn_violations = extract_records(source, parameters)
    if texts := text_columns(pairs.data.schema):
        logger.warning(
            "raw_conversations: %s hold values of several types, which are kept as JSON text",
            ", ".join(texts),
        )
    return pairs, quarantined, turn_violations


@unaffected_by("params:data_filtering", but=("params:data_filtering.rare_char_count_max",))
def find_rare_characters(
    conversation_pairs: Dataset, parameters: DataFilteringParameters
) -> dict[str, int]:
    """Return the characters that occur at most ``rare_char_count_max`` times, with their counts."""
    counts = count_characters(iterate_batches(conversation_pairs))
    return pick_characters(counts, parameters.rare_char_count_max)


def apply_replacements(
    conversation_pairs: Dataset, replacements: list[Replacement]
) -> tuple[Dataset, dict[str, int]]:
    """Apply the replacement table, in its order, to both fields and the history.

    Returns:
        The pairs, and the number of pairs that each ``find`` of the table was replaced in.
    """
    from ja_instruct.tables.arrow import collect

    table = read_replacements(replacements, "replacements")
    touched = dict.fromkeys((replacement.find for replacement in table), 0)
    automaton = build_candidate_automaton(touched)

    def replace() -> Iterator[pa.Table]:
        yield conversation_pairs.data.table.slice(0, 0).select(
            filtered_columns(conversation_pairs.column_names)
        )
        batches = iterate_batches(conversation_pairs)
        for fields, changed in map_in_threads(
            lambda batch: replace_in_batch(batch, table, automaton), batches
        ):
            for find, pairs in changed.items():
                touched[find] += pairs
            yield fields

    return replace_columns(conversation_pairs, collect(replace())), touched


@unaffected_by(
    "params:data_filtering.assistant_first",
    "params:data_filtering.bad_records_max",
    "params:data_filtering.multi_turn",
    "params:data_filtering.system_turns",
    "params:data_filtering.rare_char_count_max",
    "params:data_filtering.survivor_char_count_min",
)
def judge_pairs(
    cleaned_pairs: Dataset,
    turn_violations: Violations,
    rare_characters: dict[str, int],
    banned_substrings: list[str],
    banned_instruction_substrings: list[str],
    target_tokenizer: Tokenizer | None,
    evaluation_tasks: Dataset,
    parameters: DataFilteringParameters,
) -> Violations:
    """Apply the rules that need no other pair to each pair; CLD2 only to pairs left by the others.

    ``turn_violations`` are those that ``extract_pairs`` found. Only the rule ``token_count`` uses
    ``target_tokenizer``, only ``contamination`` uses ``evaluation_tasks``.

    Raises:
        InputError: A word list has invalid entries, or a rule lacks its tokenizer or its tasks.
    """
    banned = Banned.build(
        {
            "banned_substring": read_substrings(banned_substrings, "banned_substrings"),
            "banned_instruction_substring": read_substrings(
                banned_instruction_substrings, "banned_instruction_substrings"
            ),
            "rare_character": rare_characters,
        }
    )
    tasks = as_dataset(evaluation_tasks, "evaluation_tasks")
    checks = build_checks(parameters, cleaned_pairs, target_tokenizer, tasks)
    language = (parameters.language, parameters.language_percent_min)

    def judge(batch: PairBatch) -> list[Violations]:
        parts = find_banned(batch, banned)
        parts += [check(batch) for check in checks]
        found = [part.column("row") for part in (turn_violations, *parts)]
        rejected = np.concatenate(found) - batch.start
        left = np.setdiff1d(np.arange(len(batch)), rejected)
        parts.append(find_other_languages(batch, left, *language, detect))
        progress.update(len(batch))
        return parts

    with (
        tqdm(total=len(cleaned_pairs), desc="data_filtering", unit="pair", delay=2) as progress,
        start_detectors(len(cleaned_pairs)) as detect,
    ):
        judged = map_in_threads(judge, iterate_batches(cleaned_pairs))
        return join_violations([turn_violations, *chain.from_iterable(judged)])


@unaffected_by(
    "params:data_filtering",
    but=(
        "params:data_filtering.extra_rules",
        "params:data_filtering.near_duplicate_jaccard_min",
        "params:data_filtering.survivor_char_count_min",
    ),
)
def judge_survivors(
    cleaned_pairs: Dataset, pair_violations: Violations, parameters: DataFilteringParameters
) -> tuple[Violations, dict[str, int]]:
    """Apply the rules that compare pairs to the pairs left: duplicates, and rare characters.

    Returns:
        All violations, and the characters that occur fewer than ``survivor_char_count_min`` times
        in the pairs left, with their counts.
    """
    left = pair_violations.kept_rows(len(cleaned_pairs))
    duplicates = find_duplicates(cleaned_pairs, left, parameters)
    left = np.setdiff1d(left, duplicates.rejected_rows())
    survivors = cleaned_pairs.select(left)
    counts = count_characters(iterate_batches(survivors))
    few = pick_characters(counts, parameters.survivor_char_count_min - 1)
    banned = Banned.build({"rare_survivor_character": few})
    found = map_in_threads(lambda batch: find_banned(batch, banned), iterate_batches(survivors))
    rare = join_violations(chain.from_iterable(found)).at_rows(left)
    return join_violations([pair_violations, duplicates, rare]), few


def split_pairs(cleaned_pairs: Dataset, violations: Violations) -> tuple[Dataset, Dataset]:
    """Return the pairs to keep and the pairs to drop, each in source order.

    The dropped pairs end with the columns of ``build_reasons``, which replace those of the source.
    """
    from ja_instruct.tables.arrow import collect, iterate_tables

    rejected = violations.rejected_rows()
    kept = violations.kept_rows(len(cleaned_pairs))
    empty = cleaned_pairs.data.table.slice(0, 0)
    tables = chain([empty], iterate_tables(cleaned_pairs, rows=ROWS_PER_BATCH))
    rejected_pairs = collect(select_rows(tables, rejected, build_reasons(violations)))
    logger.info("Kept %d of %d pairs", len(kept), len(cleaned_pairs))
    if not len(kept):
        logger.warning(
            "No pair is left; filter_report counts what each rule dropped. A corpus much smaller "
            "than the recipe's 130,000 needs a lower rare_char_count_max and "
            "survivor_char_count_min"
        )
    return cleaned_pairs.select(kept), rejected_pairs


@unaffected_by(
    "params:data_filtering",
    but=("params:data_filtering.language", "params:data_filtering.language_percent_min"),
)
def report_filtering(
    conversation_pairs: Dataset,
    cleaned_pairs: Dataset,
    quarantined_records: Dataset,
    violations: Violations,
    rare_characters: dict[str, int],
    rare_survivor_characters: dict[str, int],
    replacement_counts: dict[str, int],
    target_tokenizer: Tokenizer | None,
    parameters: DataFilteringParameters,
) -> dict[str, Any]:
    """Count, in pairs, what each step did, with examples of what each rule dropped.

    Without ``target_tokenizer`` the lengths in tokens are left out.
    """
    read = len(cleaned_pairs)
    kept_pairs = cleaned_pairs.select(violations.kept_rows(read))
    language = (parameters.language, parameters.language_percent_min)
    return {
        "summary": {
            **report.count_conversations(cleaned_pairs),
            "read": read,
            "kept": len(kept_pairs),
            "rejected": read - len(kept_pairs),
            "kept_percent": round(100 * len(kept_pairs) / read, 2) if read else 0.0,
            "quarantined": len(quarantined_records),
        },
        **report.count_rules(violations),
        "good_data": report.estimate_good_data(cleaned_pairs, violations, *language),
        "json_text_columns": text_columns(cleaned_pairs.data.schema),
        "replacements": dict(replacement_counts),
        "banned_substrings": report.count_matches(violations, "banned_substring"),
        "banned_instruction_substrings": report.count_matches(
            violations, "banned_instruction_substring"
        ),
        "rare_characters": report.describe_characters(
            rare_characters, violations, "rare_character"
        ),
        "rare_survivor_characters": report.describe_characters(
            rare_survivor_characters, violations, "rare_survivor_character"
        ),
        "contamination": report.count_matches(violations, "contamination"),
        "examples": report.pick_examples(cleaned_pairs, violations),
        "lengths": {
            "characters": report.compare_characters(conversation_pairs, kept_pairs),
            "tokens": report.compare_tokens(conversation_pairs, kept_pairs, target_tokenizer),
        },
    }
