"""Exact and near duplicates of earlier pairs.

Both rules compare both fields: an instruction with another answer is not a duplicate, for the later
answer is as often the better one. They take ``(row, instruction, response)`` in source order, where
``row`` is any integer that identifies the pair, and keep the first pair of each group. Texts are
compared in Unicode NFKC with collapsed whitespace, so that full-width digits and line breaks do not
make a difference.

Near duplicates are proposed by MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, chapter 3). rensa computes the signatures, but its ``RMinHashLSH`` is
not used as the index: it returns every pair that shares a single band, without the number of shared
bands, and does not limit how many it returns, so that phrases repeated throughout a corpus make it
quadratic.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from ja_instruct.text import collapse_whitespace, jaccard, ngram_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

# Character 3-grams span a Japanese word of two characters and its particle. Longer ones lose short
# questions to a single changed character, which alters as many n-grams as they have characters;
# bigrams are shared by unrelated texts.
NGRAM_CHARS = 3
# 96 bands of 4 bytes store a pair in 384 bytes, whatever its length.
BANDS = 96
# Pairs are compared if they share at least two bands. Chance matches in a single band are so
# frequent that reading their texts again would take longer than everything else.
SHARED_BANDS_MIN = 2
# Share of the pairs with a similarity of exactly jaccard_min that share enough bands.
RECALL_MIN = 0.99
# Longer bands have fewer chance matches, and beyond this length they are rare enough.
BAND_VALUES_MAX = 8
# Both bound the work per pair however repetitive the corpus is, so that the total stays linear.
BUCKET_ROWS_MAX = 100
CANDIDATES_MAX = 20

BATCH_PAIRS = 1000
SEED = 0

_NUMBER = re.compile(r"\d+")


class NearDuplicate(NamedTuple):
    """A row, an earlier row that it nearly duplicates, and their similarity from 0 to 1."""

    row: int
    earlier_row: int
    similarity: float


class _Field(NamedTuple):
    ngrams: frozenset[str]
    numbers: list[str]


def find_exact_duplicates(pairs: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, int]]:
    r"""Yield each row whose normalized fields repeat those of earlier rows, and the first of these.

    The rows follow in source order. A pair takes 24 bytes (a 128-bit hash and its row) while
    reading, and about three times that while sorting. The probability that two of a million pairs
    share a hash by chance is 10^-26.

    >>> pairs = [
    ...     (0, "日本の首都はどこですか？", "東京です。"),
    ...     (1, "日本の首都はどこですか？", "京都です。"),
    ...     (2, "日本の首都は どこですか?", "東京です。"),
    ...     (3, "日本の首都はどこですか?\n", "東京です。"),
    ... ]
    >>> list(find_exact_duplicates(pairs))
    [(3, 0)]
    """
    rows = array("q")
    digests = bytearray()
    for row, instruction, response in pairs:
        # collapsed texts have no line break, which therefore separates the fields unambiguously
        key = f"{collapse_whitespace(instruction)}\n{collapse_whitespace(response)}"
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
        yield rows[position], rows[original]


def find_near_duplicates(
    pairs: Iterable[tuple[int, str, str]],
    *,
    read_pair: Callable[[int], tuple[str, str]],
    jaccard_min: float,
) -> Iterator[NearDuplicate]:
    """Yield each pair at least ``jaccard_min`` similar to an earlier pair that is kept.

    The similarity of two pairs is the lower one of the Jaccard similarities of their instructions
    and of their responses, each between the sets of character 3-grams; a text shorter than an
    n-gram is one n-gram. The lower one counts because pairs on one long passage differ only in
    their question, and short answers such as はい occur under any question. It is 0 if the numbers
    in a field differ: 5つ and 10個 ask for different answers, and [5, 1] and [5, 2] are different
    answers.

    MinHash proposes candidates, and their true similarity decides, so a chance match rejects
    nothing. The signatures are of the n-grams of both fields, each marked with its field; the
    Jaccard similarity of these sets is never below the lower one of the fields. At ``jaccard_min``
    itself at least 99 % of the near duplicates share two bands. A pair takes 392 bytes, and about
    150 more for each band that it shares with another pair.

    ``read_pair`` returns the fields of a row again and is called for candidates only.
    ``jaccard_min`` is from 0.5 to 1; below, chance matches would take longer than everything else.

    >>> pairs = [
    ...     (0, "日本の首都はどこですか。", "日本の首都は東京で、最大の都市でもあります。"),
    ...     (1, "日本の首都はどこですか？", "日本の首都は東京であり、最大の都市でもあります。"),
    ...     (2, "日本の首都はどこですか。", "明治になって京都から移された東京です。"),
    ... ]
    >>> read_pair = {row: (instruction, response) for row, instruction, response in pairs}.get
    >>> [near] = find_near_duplicates(pairs, read_pair=read_pair, jaccard_min=0.6)
    >>> (near.row, near.earlier_row, round(near.similarity, 2))
    (1, 0, 0.75)
    """
    rows, keys = _hash_bands(pairs, _count_band_values(jaccard_min))
    _blank_lone_keys(keys)
    meeting = np.flatnonzero(np.count_nonzero(keys, axis=1) >= SHARED_BANDS_MIN).tolist()

    # the first pair of a group of copies is compared again and again
    @lru_cache(maxsize=1024)
    def read_fields(position: int) -> list[_Field]:
        return [_read_field(text) for text in read_pair(rows[position])]

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


def _read_field(text: str) -> _Field:
    text = collapse_whitespace(text)
    return _Field(ngram_set(text, NGRAM_CHARS), _NUMBER.findall(text))


def _compare(first: list[_Field], second: list[_Field]) -> float:
    fields = list(zip(first, second, strict=True))
    if any(one.numbers != other.numbers for one, other in fields):
        return 0.0
    return min(jaccard(one.ngrams, other.ngrams) for one, other in fields)


def _count_band_values(jaccard_min: float) -> int:
    """Return the longest band with which ``RECALL_MIN`` holds at ``jaccard_min``.

    Pairs with similarity s agree in all r values of a band with probability s^r.
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
    pairs: Iterable[tuple[int, str, str]], values: int
) -> tuple[array[int], NDArray[np.uint32]]:
    """Return the rows, and the keys of their bands, shape (pairs, ``BANDS``), none of them 0."""
    from rensa import RMinHash

    rows = array("q")
    stored = bytearray()
    source = iter(pairs)
    while batch := list(islice(source, BATCH_PAIRS)):
        rows.extend(row for row, _, _ in batch)
        hashes, offsets = _hash_ngrams([text for _, *fields in batch for text in fields])
        # every second offset: the n-grams of a pair are those of its two fields
        digests = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets[::2], BANDS * values, SEED
        )
        signatures = np.array(digests.to_rows(), dtype=np.uint64).reshape(-1, BANDS, values)
        keys = np.zeros((len(batch), BANDS), dtype=np.uint64)
        for place in range(values):
            keys = _mix(keys, signatures[:, :, place])
        stored += np.maximum(keys >> np.uint64(32), 1).astype(np.uint32).tobytes()
    return rows, np.frombuffer(stored, dtype=np.uint32).reshape(-1, BANDS)


def _hash_ngrams(fields: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash the n-grams of instructions and responses in turns, each marked with its field.

    Returns:
        The hashes, some repeated, shape (n-grams,), and the start of each field among them and the
        end of the last, shape (fields + 1,).
    """
    # a text shorter than an n-gram is padded to one
    texts = [collapse_whitespace(field).ljust(NGRAM_CHARS, "\0") for field in fields]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    last = len(points) - NGRAM_CHARS + 1
    hashes = np.repeat(np.arange(len(fields), dtype=np.uint64) % np.uint64(2), lengths)[:last]
    for place in range(NGRAM_CHARS):
        hashes = _mix(hashes, points[place : place + last].astype(np.uint64))
    within = np.ones(last, dtype=bool)
    ends = np.cumsum(lengths)[:-1]
    for place in range(1, NGRAM_CHARS):
        within[ends - place] = False
    return hashes[within], np.concatenate(([0], np.cumsum(lengths - NGRAM_CHARS + 1)))


def _mix(hashes: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each hash combined with one more value, by a step of SplitMix64."""
    mixed = (hashes + np.uint64(0x9E3779B97F4A7C15)) ^ values
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _blank_lone_keys(keys: NDArray[np.uint32]) -> None:
    """Set the keys that no other pair has in the same band to 0, in place."""
    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        equal = np.diff(column[order]) == 0
        alone = np.ones(len(column), dtype=bool)
        alone[order[1:][equal]] = False
        alone[order[:-1][equal]] = False
        column[alone] = 0
