"""Pairs that repeat an earlier one, to the letter or nearly.

Both rules look at both fields: an instruction that returns with another answer is no duplicate, for
the later answer is as often the better one. They take ``(row, instruction, response)`` in source
order, where ``row`` is any integer that names the pair, and keep the first of what repeats. Texts
are compared in Unicode NFKC with runs of whitespace folded into one space, since full-width digits
or another line break make no other pair.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

# 96 bands of 4 bytes hold a pair in 384 bytes, whatever its length.
BANDS = 96
# A pair is compared with those that it meets in two bands or more: chance meetings in one are so
# many that reading the texts again would take longer than all the rest.
SHARED_BANDS_MIN = 2
# Share of the pairs at jaccard_min that meet often enough; those above it meet more often.
RECALL_MIN = 0.99
# Longer bands propose fewer false candidates, and past this they are rare enough already.
BAND_VALUES_MAX = 8
# Both bound the work on a pair whatever the corpus repeats, so that the whole stays linear.
BUCKET_ROWS_MAX = 100
CANDIDATES_MAX = 20

BATCH_PAIRS = 1000
SEED = 0

_NUMBER = re.compile(r"\d+")


class Repeat(NamedTuple):
    """A row, and the first row that holds the same."""

    row: int
    earlier_row: int


class NearDuplicate(NamedTuple):
    """A row, an earlier row that it nearly repeats, and their similarity from 0 to 1."""

    row: int
    earlier_row: int
    similarity: float


class _Field(NamedTuple):
    ngrams: frozenset[str]
    numbers: list[str]


def fold(text: str) -> str:
    """Return ``text`` in Unicode NFKC, with runs of whitespace folded into one space.

    >>> fold(" １０個の\u3000カキ ")
    '10個の カキ'
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def find_exact_duplicates(pairs: Iterable[tuple[int, str, str]]) -> Iterator[Repeat]:
    r"""Yield each pair both of whose folded fields an earlier pair holds, in source order.

    A pair takes 24 bytes (a 128-bit hash and its row) while reading, about three times that for a
    moment while sorting. Two pairs among a million share such a hash by chance once in 10^26 times.

    >>> pairs = [
    ...     (0, "日本の首都はどこですか？", "東京です。"),
    ...     (1, "日本の首都はどこですか？", "京都です。"),
    ...     (2, "日本の首都は どこですか?", "東京です。"),
    ...     (3, "日本の首都はどこですか?\n", "東京です。"),
    ... ]
    >>> list(find_exact_duplicates(pairs))
    [Repeat(row=3, earlier_row=0)]
    """
    import numpy as np

    rows = array("q")
    digests = bytearray()
    for row, instruction, response in pairs:
        # folded texts hold no line break, so that it keeps ("ab", "c") apart from ("a", "bc")
        key = f"{fold(instruction)}\n{fold(response)}"
        rows.append(row)
        digests += xxhash.xxh3_128_digest(key.encode("utf-8", "surrogatepass"))
    halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    # lexsort is stable: the first of a group is the first in the source
    order = np.lexsort((halves[:, 0], halves[:, 1]))
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    repeats, originals = order[~starts].tolist(), order[first[~starts]].tolist()
    for position, original in sorted(zip(repeats, originals, strict=True)):
        yield Repeat(rows[position], rows[original])


def compare_pairs(first: tuple[str, str], second: tuple[str, str], *, ngram_chars: int) -> float:
    """Return the lower of the similarities of the instructions and of the responses.

    Each is the Jaccard similarity of the sets of character n-grams of the folded texts; a text
    shorter than an n-gram is one n-gram. It is 0 when their numbers differ, since 5つ and 10個 ask
    for different answers, and [5, 1] and [5, 2] are such. The lower of both fields, because pairs
    on one long passage differ by their question alone, and short answers such as はい repeat under
    any question.

    >>> asked = ("日本の首都はどこですか。", "東京です。")
    >>> compare_pairs(asked, ("日本の首都はどこですか?", "東京です。"), ngram_chars=3)
    0.818...
    >>> compare_pairs(asked, ("豊臣秀吉はどこの生まれ。", "東京です。"), ngram_chars=3)
    0.0...
    >>> compare_pairs(("何年？", "西暦1603年です。"), ("何年？", "西暦1600年です。"), ngram_chars=3)
    0.0
    """
    return _compare(_read_fields(first, ngram_chars), _read_fields(second, ngram_chars))


def find_near_duplicates(
    pairs: Iterable[tuple[int, str, str]],
    *,
    read_pair: Callable[[int], tuple[str, str]],
    jaccard_min: float,
    ngram_chars: int = 3,
) -> Iterator[NearDuplicate]:
    """Yield each pair that ``compare_pairs`` finds ``jaccard_min`` or more like one kept before.

    MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
    chapter 3) proposes candidates, and their true similarity decides, so a chance meeting rejects
    nothing. What MinHash sees is the n-grams of both fields, marked with their field: the Jaccard
    similarity of these sets is never below the lower one of the fields. At ``jaccard_min`` itself
    at least 99 % of the near duplicates meet in two bands. A pair takes 392 bytes, and for each
    band in which it meets another some 150 more.

    Args:
        pairs: Read once.
        read_pair: Returns the fields of a row of ``pairs`` again; called for candidates only.
        jaccard_min: From 0.5 to 1. Below, chance meetings would cost more than the rest.
        ngram_chars: 3 spans a Japanese word of two characters and its particle. Longer ones lose
            short questions to a single changed character, which spoils as many n-grams as they
            have characters; pairs of characters are shared by texts that have nothing in common.

    >>> pairs = [
    ...     (0, "日本の首都はどこですか。", "日本の首都は東京で、最大の都市でもあります。"),
    ...     (1, "日本の首都はどこですか？", "日本の首都は東京であり、最大の都市でもあります。"),
    ...     (2, "日本の首都はどこですか。", "明治になって京都から移された東京です。"),
    ... ]
    >>> read_pair = {row: (instruction, response) for row, instruction, response in pairs}.get
    >>> [near] = find_near_duplicates(pairs, read_pair=read_pair, jaccard_min=0.6)
    >>> (near.row, near.earlier_row, round(near.similarity, 2))
    (1, 0, 0.75)

    Raises:
        InputError: When ``jaccard_min`` or ``ngram_chars`` is out of its bounds.
    """
    import numpy as np

    if not 0.5 <= jaccard_min <= 1:
        raise InputError(f"jaccard_min is {jaccard_min}: set it to 0.5 or more and to 1 at most")
    if ngram_chars < 1:
        raise InputError(f"ngram_chars is {ngram_chars}: set it to 1 or more")
    rows, keys = _hash_bands(pairs, ngram_chars, _count_band_values(jaccard_min))
    _blank_lone_keys(keys)
    meeting = np.flatnonzero(np.count_nonzero(keys, axis=1) >= SHARED_BANDS_MIN).tolist()

    # a group of copies is compared with its first again and again
    @lru_cache(maxsize=1024)
    def read_fields(position: int) -> tuple[_Field, ...]:
        return _read_fields(read_pair(rows[position]), ngram_chars)

    buckets: defaultdict[int, list[int]] = defaultdict(list)
    for position in meeting:
        places = [band << 32 | key for band, key in enumerate(keys[position].tolist()) if key]
        shared = Counter(earlier for place in places for earlier in buckets.get(place, ()))
        for earlier, bands in shared.most_common(CANDIDATES_MAX):
            if bands < SHARED_BANDS_MIN:
                continue
            similarity = _compare(read_fields(position), read_fields(earlier))
            if similarity >= jaccard_min:
                yield NearDuplicate(rows[position], rows[earlier], similarity)
                break
        else:
            for place in places:
                if len(buckets[place]) < BUCKET_ROWS_MAX:
                    buckets[place].append(position)


def _read_fields(pair: tuple[str, str], ngram_chars: int) -> tuple[_Field, ...]:
    return tuple(
        _Field(_split_ngrams(text, ngram_chars), _NUMBER.findall(text)) for text in map(fold, pair)
    )


def _split_ngrams(folded: str, ngram_chars: int) -> frozenset[str]:
    count = max(1, len(folded) - ngram_chars + 1)
    return frozenset(folded[start : start + ngram_chars] for start in range(count))


def _compare(first: tuple[_Field, ...], second: tuple[_Field, ...]) -> float:
    fields = list(zip(first, second, strict=True))
    if any(one.numbers != other.numbers for one, other in fields):
        return 0.0
    return min(_measure_jaccard(one.ngrams, other.ngrams) for one, other in fields)


def _measure_jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def _count_band_values(jaccard_min: float) -> int:
    """Return the most values a band may have for ``RECALL_MIN`` to hold at ``jaccard_min``.

    Pairs of similarity s agree in all r values of a band with probability s^r.
    """
    for values in range(BAND_VALUES_MAX, 1, -1):
        agree = jaccard_min**values
        missed = sum(
            comb(BANDS, shared) * agree**shared * (1 - agree) ** (BANDS - shared)
            for shared in range(SHARED_BANDS_MIN)
        )
        if 1 - missed >= RECALL_MIN:
            return values
    return 1


def _hash_bands(
    pairs: Iterable[tuple[int, str, str]], ngram_chars: int, values: int
) -> tuple[array[int], NDArray[np.uint32]]:
    """Return the rows, and of each the keys of its bands, shape (pairs, ``BANDS``), none 0."""
    import numpy as np
    from rensa import RMinHash

    rows = array("q")
    stored = bytearray()
    source = iter(pairs)
    while batch := list(islice(source, BATCH_PAIRS)):
        rows.extend(row for row, _, _ in batch)
        hashes, offsets = _hash_ngrams(
            [field for _, *fields in batch for field in fields], ngram_chars
        )
        # the hashes of a pair are those of its two fields
        digests = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets[::2], BANDS * values, SEED
        )
        signatures = np.array(digests.to_rows(), dtype=np.uint64).reshape(-1, BANDS, values)
        keys = np.zeros((len(batch), BANDS), dtype=np.uint64)
        for place in range(values):
            keys = _mix(keys, signatures[:, :, place])
        stored += np.maximum(keys >> np.uint64(32), 1).astype(np.uint32).tobytes()
    return rows, np.frombuffer(stored, dtype=np.uint32).reshape(-1, BANDS)


def _hash_ngrams(
    fields: list[str], ngram_chars: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of what ``_split_ngrams`` returns, marked with the field, in turns.

    Returns:
        The hashes, some repeated, shape (n-grams,), and where those of each field begin and the
        last end, shape (fields + 1,).
    """
    import numpy as np

    # of a text that is shorter than an n-gram one is left
    folded = [fold(field).ljust(ngram_chars, "\0") for field in fields]
    lengths = np.array([len(text) for text in folded], dtype=np.int64)
    points = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    last = len(points) - ngram_chars + 1
    hashes = np.repeat(np.arange(len(fields), dtype=np.uint64) % np.uint64(2), lengths)[:last]
    for place in range(ngram_chars):
        hashes = _mix(hashes, points[place : place + last].astype(np.uint64))
    within = np.ones(last, dtype=bool)
    ends = np.cumsum(lengths)[:-1]
    for place in range(1, ngram_chars):
        within[ends - place] = False
    return hashes[within], np.concatenate(([0], np.cumsum(lengths - ngram_chars + 1)))


def _mix(hashes: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``hashes`` with one more value in each, spread over 64 bits (SplitMix64's step)."""
    import numpy as np

    mixed = (hashes + np.uint64(0x9E3779B97F4A7C15)) ^ values
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _blank_lone_keys(keys: NDArray[np.uint32]) -> None:
    """Set the keys that no other pair has in the same band to 0, in place."""
    import numpy as np

    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        equal = np.diff(column[order]) == 0
        alone = np.ones(len(column), dtype=bool)
        alone[order[1:][equal]] = False
        alone[order[:-1][equal]] = False
        column[alone] = 0
