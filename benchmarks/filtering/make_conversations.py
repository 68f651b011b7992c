"""Corpora of any size for the filter's benchmark, made of the real conversations.

    python benchmarks/filtering/make_conversations.py 130000 /tmp/130000.jsonl
    python benchmarks/filtering/make_conversations.py --law

A record has the instruction of one real conversation and the response of another of the same set;
in each side one sentence is exchanged for one of a third, so that few sides repeat: 2.3 % of the
sides of 130,000 records, 7.4 % at 1,000,000. The sets are dolly_ja and model_answers_ja (11,020
conversations), drawn by their sizes.

The filter bans every character that a corpus holds 19 times or fewer, so its work depends on how
many there are. Recombined texts hold no new characters: the larger the corpus, the fewer would be
rare, where a real corpus has more. Counted in the real conversations, shuffled, mean of 20 orders
(``--law``):

    records                    2,000   5,000   11,020
    characters seen <= 19      1,633   1,886    2,187

so they grow with the power 0.171 of the records (least squares in logarithms), which makes 3,335 at
130,000 and 4,728 at 1,000,000. What the recombined texts hold of them follows from the real counts:
a character seen c times is rare among N records with the Poisson probability of 19 or fewer at a
mean of c N / 11,020. The rest is planted: letters that no real conversation holds and that CLD2 can
read, as often each as a rare real one (1 to 19 times, 4.6 in the mean), all over as clustered as
there: 3.6 in each record that has any. Counted in what was made: 3,321 in 130,000 records, 4,728 in
1,000,000.

``--power 1`` plants as many rare characters a record as the real 11,020 have: 25,799 in 130,000. So
grows a corpus that is joined of many small ones without anything in common, and a filter that asks
for one banned text after another suffers from it most.

One seed, one size: the same file, byte for byte. Records are written as they are made; only the
real conversations and the places of the planted characters are held.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = ("dolly_ja", "model_answers_ja")
RARE_COUNT_MAX = 19

LAW_RECORDS = 11_020
LAW_RARE = 2_187
LAW_POWER = 0.171
LAW_SIZES = (2_000, 5_000, LAW_RECORDS)
LAW_ORDERS = 20
RARE_PER_RECORD_WITH_ANY = 3.6

# first and last code point, and how many letters to take: nearly by the scripts of the rare real
# characters, of which 71 % are ideographs and 5 % Hangul syllables
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
    """The sentences of the first turn of each side; joined, they are its text."""

    instruction: list[str]
    response: list[str]

    @property
    def counted_text(self) -> str:
        """What the recipe counts the characters of."""
        return f"{''.join(self.response)} {''.join(self.instruction)}"


def find_real_files() -> list[Path]:
    """Return the two files of real conversations; exits with a message when they are missing."""
    files = [DATA / name / "conversations.jsonl" for name in SETS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(
            f"missing: {', '.join(missing)}. The benchmark's corpora are made of these "
            f"conversations; they lie beside the project, not in it"
        )
    return files


def read_conversations(path: Path) -> list[Conversation]:
    """Read the first turn of each side of every record."""
    conversations = []
    # split on \n alone: some texts hold U+2028
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            sides: dict[str, str] = {}
            for turn in json.loads(line)["conversations"]:
                sides.setdefault(turn["role"], turn["content"] or "")
            texts = (sides.get("user", ""), sides.get("assistant", ""))
            conversations.append(Conversation(*map(SENTENCE.findall, texts)))
    return conversations


def count_characters(conversations: list[Conversation]) -> Counter[str]:
    """Count as the recipe does."""
    counts: Counter[str] = Counter()
    for conversation in conversations:
        counts.update(conversation.counted_text)
    return counts


def predict_rare(records: int, power: float) -> float:
    """Return the number of rare characters that a corpus of this size is to hold."""
    return LAW_RARE * math.pow(records / LAW_RECORDS, power)


def expect_rare(real_counts: Counter[str], records: int) -> float:
    """Return the number of real characters that stay rare when recombined into ``records``."""

    def probability(mean: float) -> float:
        terms = range(RARE_COUNT_MAX + 1)
        return sum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in terms)

    scale = records / LAW_RECORDS
    return sum(
        characters * probability(count * scale)
        for count, characters in Counter(real_counts.values()).items()
    )


def draw_letters(number: int, known: Counter[str], rng: random.Random) -> list[str]:
    """Draw assigned letters that are not among ``known``.

    Raises:
        ValueError: There are not as many.
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
        # what is left is ideographs: of the first planes, and of those that hardly any text holds
        taken = set(letters)
        more = [*range(0x4E00, 0xA000), *range(0x3400, 0x4DC0), *range(0x20000, 0x2A6E0)]
        unused = [c for c in map(chr, more) if c not in known and c not in taken]
        letters += unused[: number - len(letters)]
    if number > len(letters):
        raise ValueError(f"{number} rare characters are wanted, there are {len(letters)}")
    return rng.sample(letters, number)


def plan_rare_characters(
    real_counts: Counter[str], records: int, power: float, rng: random.Random
) -> dict[int, list[str]]:
    """Return the characters to plant, by the number of the record from 0."""
    number = max(0, round(predict_rare(records, power) - expect_rare(real_counts, records)))
    rare_counts = [count for count in real_counts.values() if count <= RARE_COUNT_MAX]
    planted = [
        letter
        for letter in draw_letters(number, real_counts, rng)
        for _ in range(rng.choice(rare_counts))
    ]
    held = math.ceil(len(planted) / RARE_PER_RECORD_WITH_ANY)
    places = [rng.randrange(records) for _ in range(held)]
    plan: dict[int, list[str]] = {}
    for letter in planted:
        plan.setdefault(rng.choice(places), []).append(letter)
    return plan


def mix_sentences(own: list[str], other: list[str], rng: random.Random) -> str:
    """Return a side with a sentence of another in place of one of its own; one alone is kept."""
    if not other:
        return "".join(own)
    sentence = other[int(rng.random() * len(other))]
    if len(own) < 2:
        return "".join([sentence, *own] if rng.random() < 0.5 else [*own, sentence])
    mixed = list(own)
    mixed[int(rng.random() * len(own))] = sentence
    return "".join(mixed)


def plant(sides: list[str], letters: list[str], rng: random.Random) -> None:
    """Put each letter anywhere in either of ``sides``, in place."""
    for letter in letters:
        side = rng.randrange(2)
        position = rng.randint(0, len(sides[side]))
        sides[side] = sides[side][:position] + letter + sides[side][position:]


def make_conversations(records: int, seed: int, power: float) -> Iterator[dict[str, object]]:
    """Yield the records: ``id`` and ``conversations``."""
    rng = random.Random(seed)
    sets = [read_conversations(file) for file in find_real_files()]
    everything = [conversation for one in sets for conversation in one]
    set_of = [one for one in sets for _ in one]
    plan = plan_rare_characters(count_characters(everything), records, power, rng)
    for number in range(records):
        # half the time of randrange and choice, which would be most of the time
        first = int(rng.random() * len(everything))
        pool = set_of[first]
        second, third, fourth = (pool[int(rng.random() * len(pool))] for _ in range(3))
        sides = [
            mix_sentences(everything[first].instruction, third.instruction, rng),
            mix_sentences(second.response, fourth.response, rng),
        ]
        plant(sides, plan.get(number, []), rng)
        yield {
            "id": f"made-{seed}-{number}",
            "conversations": [
                {"role": "user", "content": sides[0]},
                {"role": "assistant", "content": sides[1]},
            ],
        }


def write_corpus(path: Path, records: int, seed: int, power: float = LAW_POWER) -> None:
    """Write the corpus; the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for record in make_conversations(records, seed, power):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def measure_law() -> None:
    """Count the rare characters of parts of the real conversations, print the fitted power."""
    everything = [talk for file in find_real_files() for talk in read_conversations(file)]
    points = []
    for size in LAW_SIZES:
        found = []
        for seed in range(LAW_ORDERS):
            counts = count_characters(random.Random(seed).sample(everything, size))
            found.append(sum(count <= RARE_COUNT_MAX for count in counts.values()))
        mean = sum(found) / LAW_ORDERS
        points.append((math.log(size), math.log(mean)))
        sys.stdout.write(f"{size:>9,} records{mean:>9,.0f} rare characters\n")
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    power = covariance / sum((x - mean_x) ** 2 for x, _ in points)
    sys.stdout.write(f"power {power:.3f}\n")


def main() -> None:
    """Make a corpus, or measure the law."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=int, nargs="?")
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--power", type=float, default=LAW_POWER, help="of the rare characters")
    parser.add_argument("--law", action="store_true", help="count the real rare characters")
    arguments = parser.parse_args()
    if arguments.law:
        measure_law()
    elif arguments.path is None:
        parser.error("give the number of records and the file to write, or --law")
    else:
        write_corpus(arguments.path, arguments.records, arguments.seed, arguments.power)


if __name__ == "__main__":
    main()
