"""The recipe's data filtering as one would write it first: one process, plain Python, CLD2.

It shares no code with the product and is what ``bench_data_filtering.py`` holds it against, in
results as in time. Every step works on the whole list before the next begins. From the project's
root, where the word lists lie:

    python benchmarks/filtering/reference.py RAW.jsonl KEPT.jsonl

Each step's seconds are printed, and a JSON line last. The clock starts before the raw file is
opened and stops when the kept records are written: neither imports nor the word lists count, and
of the product's work writing the rejected records and why has no counterpart here.

The recipe makes the rare characters part of the banned list, and so does this: one ``in`` for each
of some thousand texts, which is most of the time. ``--rare set`` asks the rare ones as a set of
characters instead, the first thing to come to mind once this is too slow; results are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pycld2
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WORD_LISTS = Path(__file__).resolve().parents[2] / "conf/base/word_lists"
RARE_CHAR_COUNT_MAX = 19
SURVIVOR_CHAR_COUNT_MIN = 10
LANGUAGE_PERCENT_MIN = 60

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read every line and put the first turn of each side before the record's own fields."""
    records = []
    # newline: some texts hold U+2028 or a lone carriage return, which end no line
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            source = json.loads(line)
            turns = source["conversations"] or []
            sides = {
                "instruction": first_content(turns, "user"),
                "response": first_content(turns, "assistant"),
            }
            records.append({**sides, **source, **sides})
    return records


def first_content(turns: list[dict[str, str | None]], role: str) -> str:
    """Return the content of the first turn of ``role``, "" without one."""
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
    """Return the characters seen 19 times or fewer."""
    counts = count_characters(records)
    return [character for character, count in counts.items() if count <= RARE_CHAR_COUNT_MAX]


def replace(records: list[Record], table: list[dict[str, str]]) -> None:
    """Apply the table, in its order, to both sides, in place."""
    for record in records:
        instruction, response = record["instruction"], record["response"]
        for entry in table:
            instruction = instruction.replace(entry["find"], entry["replace"])
            response = response.replace(entry["find"], entry["replace"])
        record["instruction"], record["response"] = instruction, response


def drop_banned(records: list[Record], banned: list[str]) -> list[Record]:
    """Keep the records with no banned text in either side."""
    kept = []
    for record in records:
        instruction, response = record["instruction"], record["response"]
        if not any(text in instruction or text in response for text in banned):
            kept.append(record)
    return kept


def drop_characters(records: list[Record], characters: set[str]) -> list[Record]:
    """Keep the records with none of ``characters`` in either side."""
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
    """Keep the records with two Japanese sides; one that CLD2 cannot read is dropped."""
    kept = []
    for record in records:
        try:
            if is_japanese(record["instruction"]) and is_japanese(record["response"]):
                kept.append(record)
        except (pycld2.error, UnicodeEncodeError):
            continue
    return kept


def drop_rare_survivors(records: list[Record]) -> list[Record]:
    """Keep the records without a character that all of them hold fewer than 10 times."""
    counts = count_characters(records)
    few = {character for character, count in counts.items() if count < SURVIVOR_CHAR_COUNT_MIN}
    return drop_characters(records, few)


def write_records(records: list[Record], path: Path) -> None:
    """Write one JSON object a line, not escaped."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Filter, print each step's seconds, the counts last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--rare", choices=("list", "set"), default="list")
    arguments = parser.parse_args()
    table = yaml.safe_load((WORD_LISTS / "replacements.yml").read_text("utf-8"))
    banned = yaml.safe_load((WORD_LISTS / "banned_substrings.yml").read_text("utf-8"))

    marks = [("start", time.perf_counter())]

    def mark(step: str) -> None:
        marks.append((step, time.perf_counter()))

    records = read_records(arguments.raw)
    read = len(records)
    mark("read")
    rare = find_rare_characters(records)
    mark("count")
    replace(records, table)
    mark("replace")
    if arguments.rare == "list":
        records = drop_banned(records, banned + rare)
    else:
        records = drop_banned(drop_characters(records, set(rare)), banned)
    mark("banned")
    records = drop_other_languages(records)
    mark("language")
    records = drop_rare_survivors(records)
    mark("survivors")
    write_records(records, arguments.kept)
    mark("write")

    steps = {step: round(end - begin, 3) for (_, begin), (step, end) in pairwise(marks)}
    for step, seconds in steps.items():
        sys.stdout.write(f"{step:<10}{seconds:>9.3f} s\n")
    summary = {
        "seconds": marks[-1][1] - marks[0][1],
        "steps": steps,
        "read": read,
        "kept": len(records),
        "rare_characters": len(rare),
    }
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
