"""Synthetic corpora of any size for the filter's benchmark, made from the real conversations.

A record has the instruction of one real conversation and the response of another of the same set;
in each field one sentence is exchanged for one of a third, so that few fields repeat.

The filter bans every character that a corpus contains 19 times or fewer, so its work depends on
their number. Recombined texts have no new characters: the larger the corpus, the fewer would be
rare, whereas a real corpus has more. Counted in the real conversations, shuffled, mean of 20 orders
(``python benchmarks/filtering/make_conversations.py`` counts again):

    records                    2,000   5,000   11,020
    characters seen <= 19      1,633   1,886    2,187

so they grow with the power 0.171 of the records (least squares in logarithms). A real character
seen c times is still rare among N recombined records with the Poisson probability of 19 or fewer at
a mean of c N / 11,020. The others are added: letters that no real conversation has and that CLD2
can read, each as often as a rare real one, and as clustered: 3.6 in each record that has any.
With a power of 1 each record has as many rare characters as the real 11,020. A corpus joined from
many small unrelated ones grows like that: the worst case for searching one banned text after
another.

The same size and power give the same file, byte for byte.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = ("dolly_ja", "model_answers_ja")
RARE_COUNT_MAX = 19

LAW_RECORDS = 11_020
LAW_RARE = 2_187
LAW_POWER = 0.171
RARE_PER_RECORD_WITH_ANY = 3.6

# first and last code point, and number of letters: about the scripts of the rare real characters,
# of which 71 % are ideographs and 5 % Hangul syllables
SCRIPTS = (
    (0x4E00, 0x9FFF, 6_000),
    (0xAC00, 0xD7A3, 600),
    (0x0370, 0x03FF, 100),
    (0x0400, 0x04FF, 200),
    (0x05D0, 0x05EA, 100),
    (0x0621, 0x064A, 100),
    (0x0904, 0x0939, 100),
    (0x0E01, 0x0E2E, 100),
)
SENTENCE = re.compile(r"[^。\n]*[。\n]|[^。\n]+")


class Conversation(NamedTuple):
    """The sentences of the first turn of each role; joined, they are its text."""

    instruction: list[str]
    response: list[str]


def find_real_files() -> list[Path]:
    """Return the two files of real conversations; exits with a message if one is missing."""
    files = [DATA / name / "conversations.jsonl" for name in SETS]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise SystemExit(
            f"missing: {', '.join(missing)}. The corpora are made from these conversations, which "
            "lie beside the project, not in it"
        )
    return files


def read_conversations(path: Path) -> list[Conversation]:
    """Read the first turn of each role of every record."""
    conversations = []
    # split on \n alone: some texts contain U+2028
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            first: dict[str, str] = {}
            for turn in json.loads(line)["conversations"]:
                first.setdefault(turn["role"], turn["content"] or "")
            texts = (first.get("user", ""), first.get("assistant", ""))
            conversations.append(Conversation(*map(SENTENCE.findall, texts)))
    return conversations


def count_characters(conversations: list[Conversation]) -> Counter[str]:
    """Count as the recipe does."""
    counts: Counter[str] = Counter()
    for conversation in conversations:
        counts.update(f"{''.join(conversation.response)} {''.join(conversation.instruction)}")
    return counts


def expect_rare(real_counts: Counter[str], records: int) -> float:
    """Return the expected number of real characters that stay rare in ``records``."""

    def probability(mean: float) -> float:
        terms = range(RARE_COUNT_MAX + 1)
        return sum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in terms)

    scale = records / LAW_RECORDS
    return sum(
        characters * probability(count * scale)
        for count, characters in Counter(real_counts.values()).items()
    )


def draw_letters(number: int, known: Counter[str], rng: random.Random) -> list[str]:
    """Draw assigned letters that are not in ``known``.

    Raises:
        ValueError: There are not enough.
    """
    letters: list[str] = []
    for first, last, most in SCRIPTS:
        script = [
            chr(code)
            for code in range(first, last + 1)
            if unicodedata.category(chr(code)) in ("Ll", "Lo", "Lu") and chr(code) not in known
        ]
        letters += rng.sample(script, min(most, len(script)))
    if number > len(letters):
        # further ideographs, and those of the planes that hardly any text uses
        taken = set(letters)
        more = [*range(0x4E00, 0xA000), *range(0x3400, 0x4DC0), *range(0x20000, 0x2A6E0)]
        unused = [c for c in map(chr, more) if c not in known and c not in taken]
        letters += unused[: number - len(letters)]
    if number > len(letters):
        raise ValueError(f"{number} rare characters are needed, there are {len(letters)}")
    return rng.sample(letters, number)


def plan_rare_characters(
    real_counts: Counter[str], records: int, power: float, rng: random.Random
) -> dict[int, list[str]]:
    """Return the characters to add, by the number of the record from 0."""
    wanted = LAW_RARE * math.pow(records / LAW_RECORDS, power)
    number = max(0, round(wanted - expect_rare(real_counts, records)))
    rare_counts = [count for count in real_counts.values() if count <= RARE_COUNT_MAX]
    added = [
        letter
        for letter in draw_letters(number, real_counts, rng)
        for _ in range(rng.choice(rare_counts))
    ]
    places = [
        rng.randrange(records) for _ in range(math.ceil(len(added) / RARE_PER_RECORD_WITH_ANY))
    ]
    plan: dict[int, list[str]] = {}
    for letter in added:
        plan.setdefault(rng.choice(places), []).append(letter)
    return plan


def mix_sentences(own: list[str], other: list[str], rng: random.Random) -> str:
    """Return a text with one sentence replaced by another's; a single one is kept beside it."""
    if not other:
        return "".join(own)
    sentence = other[int(rng.random() * len(other))]
    if len(own) < 2:
        return "".join([sentence, *own] if rng.random() < 0.5 else [*own, sentence])
    mixed = list(own)
    mixed[int(rng.random() * len(own))] = sentence
    return "".join(mixed)


def make_conversations(records: int, power: float) -> Iterator[dict[str, object]]:
    """Yield the records: ``id`` and ``conversations``."""
    rng = random.Random(0)
    sets = [read_conversations(file) for file in find_real_files()]
    everything = [conversation for one in sets for conversation in one]
    set_of = [one for one in sets for _ in one]
    plan = plan_rare_characters(count_characters(everything), records, power, rng)
    for number in range(records):
        # twice as fast as randrange and choice, which would take most of the time
        first = int(rng.random() * len(everything))
        pool = set_of[first]
        second, third, fourth = (pool[int(rng.random() * len(pool))] for _ in range(3))
        texts = [
            mix_sentences(everything[first].instruction, third.instruction, rng),
            mix_sentences(second.response, fourth.response, rng),
        ]
        for letter in plan.get(number, []):
            field = rng.randrange(2)
            position = rng.randint(0, len(texts[field]))
            texts[field] = texts[field][:position] + letter + texts[field][position:]
        yield {
            "id": f"made-0-{number}",
            "conversations": [
                {"role": "user", "content": texts[0]},
                {"role": "assistant", "content": texts[1]},
            ],
        }


def write_corpus(path: Path, records: int, power: float) -> None:
    """Write the corpus; the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for record in make_conversations(records, power):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def measure_law() -> None:
    """Count the rare characters of parts of the real conversations; print the fitted power."""
    everything = [one for file in find_real_files() for one in read_conversations(file)]
    sizes, rare = [], []
    for size in (2_000, 5_000, LAW_RECORDS):
        found = []
        for seed in range(20):
            counts = count_characters(random.Random(seed).sample(everything, size))
            found.append(sum(count <= RARE_COUNT_MAX for count in counts.values()))
        sizes.append(math.log(size))
        rare.append(math.log(statistics.mean(found)))
        print(f"{size:>9,} records{statistics.mean(found):>9,.0f} rare characters")
    print(f"power {statistics.linear_regression(sizes, rare).slope:.3f}")


if __name__ == "__main__":
    measure_law()
