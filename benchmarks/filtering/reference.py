"""The recipe's data filtering as one would first write it: one process, plain Python, CLD2.

It shares no code with the product; ``bench_data_filtering.py`` compares the two. Every step works
on the whole list before the next begins. The clock starts before the raw file is opened and stops
when the kept records are written: imports and the word lists do not count, and nothing here
corresponds to the product's writing of rejected records and reasons.

    python benchmarks/filtering/reference.py RAW.jsonl KEPT.jsonl [list|set]

As in the recipe, the rare characters are part of the banned list: one ``in`` for each of several
thousand texts, which takes most of the time. ``set`` looks the rare ones up in a set of characters
instead, the first remedy for that; the results are the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pycld2
import yaml

WORD_LISTS = Path(__file__).resolve().parents[2] / "conf/base/word_lists"
RARE_CHAR_COUNT_MAX = 19
SURVIVOR_CHAR_COUNT_MIN = 10
LANGUAGE_PERCENT_MIN = 60

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read every line; put the first turn of each role before the record's own fields."""
    records = []
    # newline: some texts contain U+2028 or a lone carriage return, which end no line
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            source = json.loads(line)
            turns = source["conversations"] or []
            fields = {
                "instruction": first_content(turns, "user"),
                "response": first_content(turns, "assistant"),
            }
            records.append({**fields, **source, **fields})
    return records


def first_content(turns: list[dict[str, str | None]], role: str) -> str:
    """Return the content of the first turn of ``role``, or "" if there is none."""
    for turn in turns:
        if turn["role"] == role:
            return turn["content"] or ""
    return ""


def count_characters(records: list[Record]) -> Counter[str]:
    """Count the characters of each response, a space and each instruction."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record["response"] + " " + record["instruction"])
    return counts


def find_rare_characters(records: list[Record]) -> list[str]:
    """Return the characters that occur 19 times or fewer."""
    counts = count_characters(records)
    return [character for character, count in counts.items() if count <= RARE_CHAR_COUNT_MAX]


def replace(records: list[Record], table: list[dict[str, str]]) -> None:
    """Apply the table, in its order, to both fields, in place."""
    for record in records:
        instruction, response = record["instruction"], record["response"]
        for entry in table:
            instruction = instruction.replace(entry["find"], entry["replace"])
            response = response.replace(entry["find"], entry["replace"])
        record["instruction"], record["response"] = instruction, response


def drop_banned(records: list[Record], banned: list[str]) -> list[Record]:
    """Keep the records with no banned text in either field."""
    kept = []
    for record in records:
        instruction, response = record["instruction"], record["response"]
        if not any(text in instruction or text in response for text in banned):
            kept.append(record)
    return kept


def drop_characters(records: list[Record], characters: set[str]) -> list[Record]:
    """Keep the records with none of ``characters`` in either field."""
    return [
        record
        for record in records
        if characters.isdisjoint(record["instruction"])
        and characters.isdisjoint(record["response"])
    ]


def is_japanese(text: str) -> bool:
    """Return whether CLD2 finds 60 % or more Japanese."""
    found = pycld2.detect(text)[2]
    return any(code == "ja" and percent >= LANGUAGE_PERCENT_MIN for _, code, percent, _ in found)


def drop_other_languages(records: list[Record]) -> list[Record]:
    """Keep the records with two Japanese fields; drop those that CLD2 cannot read."""
    kept = []
    for record in records:
        try:
            if is_japanese(record["instruction"]) and is_japanese(record["response"]):
                kept.append(record)
        except (pycld2.error, UnicodeEncodeError):
            continue
    return kept


def drop_rare_survivors(records: list[Record]) -> list[Record]:
    """Keep the records without characters that occur fewer than 10 times in all of them."""
    counts = count_characters(records)
    few = {character for character, count in counts.items() if count < SURVIVOR_CHAR_COUNT_MIN}
    return drop_characters(records, few)


def write_records(records: list[Record], path: Path) -> None:
    """Write one JSON object a line, not escaped."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Filter; print the seconds and the counts."""
    raw, kept, *rare_as = sys.argv[1:]
    table = yaml.safe_load((WORD_LISTS / "replacements.yml").read_text("utf-8"))
    banned = yaml.safe_load((WORD_LISTS / "banned_substrings.yml").read_text("utf-8"))

    started = time.perf_counter()
    records = read_records(Path(raw))
    read = len(records)
    rare = find_rare_characters(records)
    replace(records, table)
    if rare_as == ["set"]:
        records = drop_banned(drop_characters(records, set(rare)), banned)
    else:
        records = drop_banned(records, banned + rare)
    records = drop_other_languages(records)
    records = drop_rare_survivors(records)
    write_records(records, Path(kept))
    seconds = time.perf_counter() - started

    counts = {"read": read, "kept": len(records), "rare_characters": len(rare)}
    print(json.dumps({"seconds": seconds, **counts}))


if __name__ == "__main__":
    main()
