"""The data filtering pipeline against the recipe written straightforwardly: time, memory, results.

    python benchmarks/filtering/bench_data_filtering.py

filters the 11,020 real conversations and 130,000 synthetic ones (``make_conversations.py``) with
``reference.py`` and with the product in turn, each in a process of its own. The product runs by its
own catalog and parameters, in a copy of the project with an environment that only changes
``raw_conversations``, ``run_name`` and MLflow's tracking; nothing is downloaded. Both must keep the
same records with the same texts in the same order, and the product must reject the others; else the
benchmark fails.

Seconds count from before the raw file is opened to the last byte written, the product's checks
included: *outputs* is a run to ``filtered_pairs`` and ``rejected_pairs`` alone, *full* one with the
reports. Imports do not count: a first run, not timed, notes what is imported meanwhile, and the
timed runs import it beforehand (imports of worker processes do count). *process* is everything from
start to exit.

Memory is that of the whole process tree: *resident* is the peak of samples or, for a single
process, the kernel's high-water mark; *private* is the sampled memory that no other process shares.

There are two corpora of 130,000: with as many rare characters per record as the real ones, and with
as many as a real corpus of that size would have. On the first, the recipe's way, one banned text
after the other, takes several times as long.

``--curve`` runs the product alone on 10,000, 100,000 and 1,000,000 synthetic records, ``--profile``
prints the seconds of each phase. Synthetic corpora need the real conversations beside the project;
``--folder`` keeps them for later calls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.filtering.make_conversations import (
    LAW_POWER,
    LAW_RECORDS,
    find_real_files,
    write_corpus,
)
from benchmarks.filtering.product import ENVIRONMENT, OUTPUTS, copy_project, run_in_process
from benchmarks.harness.memory import Usage, run_measured
from benchmarks.harness.recording import print_table, record

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (LAW_RECORDS, 130_000)
REPEATS = 7
LARGE = 100_000
REPEATS_WHEN_LARGE = 3
#: The power of the records with which rare characters grow, if each record has the same number.
PER_RECORD = 1.0
REPEATS_PER_RECORD = 1
CURVE = (10_000, 100_000, 1_000_000)
REFERENCE = Path(__file__).with_name("reference.py")
FILTERED, REJECTED = (f"data/03_primary/{ENVIRONMENT}/{name}.jsonl" for name in OUTPUTS)
MEMORY_COLUMNS = {
    "resident MB": "memory.resident_mb",
    "private MB": "memory.private_mb",
    "processes": "memory.processes",
}

Run = tuple[dict[str, Any], Usage]


class Runs:
    """Runs of both sides on one corpus, in a folder of their own."""

    def __init__(self, raw: Path, folder: Path) -> None:
        """Copy the project."""
        self.raw = raw
        self.raw_mb = raw.stat().st_size / 1e6
        self.project = folder / "project"
        self.imports = folder / "imports.json"
        self._kept = folder / "kept.jsonl"
        self._result = folder / "product.json"
        copy_project(self.project, raw)

    def reference(self, rare: str = "list") -> Run:
        """Run the reference; return its measurements and usage."""
        command = [sys.executable, str(REFERENCE), str(self.raw), str(self._kept), "--rare", rare]
        usage, output = run_measured(command)
        return json.loads(output.splitlines()[-1]), usage

    def product(self, *, full: bool = True) -> Run:
        """Run the product; return its measurements and usage."""
        return run_in_process(self.project, self._result, full=full)

    def compare(self) -> int:
        """Return the number of kept records; exits if reference and product differ."""
        kept, rejected = (self.project / path for path in (FILTERED, REJECTED))
        number = 0
        for number, (theirs, ours) in enumerate(
            zip_longest(read_lines(self._kept), read_lines(kept), fillvalue={}), start=1
        ):
            if not theirs or any(ours.get(key) != theirs[key] for key in theirs):
                sys.exit(
                    f"kept record {number} differs:\n  reference {theirs!s:.600}\n"
                    f"  product {ours!s:.600}"
                )
        # merged by their order in the raw file, kept and rejected records are the raw ones
        kept_ids, rejected_ids = (
            [line["id"] for line in read_lines(path)][::-1] for path in (kept, rejected)
        )
        for line, source in enumerate(read_lines(self.raw), start=1):
            ids = kept_ids if kept_ids[-1:] == [source["id"]] else rejected_ids
            if ids[-1:] != [source["id"]]:
                sys.exit(f"{self.raw}:{line} is neither kept nor rejected, or not in its place")
            ids.pop()
        if kept_ids or rejected_ids:
            sys.exit(f"{kept} and {rejected} have more records than {self.raw}")
        return number


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON Lines file."""
    # split on \n alone: some texts contain U+2028
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def find_corpus(records: int, folder: Path, power: float = LAW_POWER) -> Path:
    """Return a corpus in ``folder``, made if it is missing; 11,020 are the real ones."""
    name = str(records) if power == LAW_POWER else f"{records}-power-{power}"
    path = folder / ("real.jsonl" if records == LAW_RECORDS else f"{name}.jsonl")
    if not path.is_file() and records == LAW_RECORDS:
        path.write_bytes(b"".join(file.read_bytes() for file in find_real_files()))
    elif not path.is_file():
        print(f"making {path.name}", flush=True)
        write_corpus(path, records, 0, power)
    return path


def summarize(runs: list[Run]) -> dict[str, Any]:
    """Return medians and minima of a side's seconds, and its memory peaks."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": round(statistics.median(values), 3), "min": round(min(values), 3)}

    usages = [usage for _, usage in runs]
    return {
        "seconds": spread([own["seconds"] for own, _ in runs]),
        "process_seconds": spread([usage.seconds for usage in usages]),
        "memory": {
            "resident_mb": round(max(usage.resident_mb for usage in usages), 1),
            "private_mb": round(max(usage.private_mb for usage in usages), 1),
            "processes": max(usage.processes for usage in usages),
        },
    }


def compare_sides(raw: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Run reference and product in turn; return the figures of one corpus."""
    runs = Runs(raw, folder)
    runs.product()  # bytecode, the list of imports
    measured: dict[str, list[Run]] = {"reference": [], "outputs": [], "full": []}
    kept = 0
    for _ in range(repeats):
        measured["reference"].append(runs.reference())
        measured["outputs"].append(runs.product(full=False))
        runs.compare()
        measured["full"].append(runs.product())
        kept = runs.compare()
    measured["reference, rare characters as a set"] = [runs.reference("set")]
    runs.compare()
    sides = {name: summarize(one) for name, one in measured.items()}
    seconds = {name: side["seconds"]["median"] for name, side in sides.items()}
    return {
        "ratio": round(seconds["reference"] / seconds["outputs"], 2),
        "ratio_full": round(seconds["reference"] / seconds["full"], 2),
        "raw_mb": round(runs.raw_mb, 1),
        "kept": kept,
        "rare_characters": measured["reference"][0][0]["rare_characters"],
        "repeats": repeats,
        "product_start_mb": round(measured["outputs"][0][0]["start_mb"], 1),
        "sides": sides,
    }


def compare_sizes(sizes: list[int], corpora: Path, folder: Path, repeats: int | None) -> dict:
    """Compare at each size and print the tables; return the figures by corpus."""
    rows = {}
    for records in sizes:
        for power in [LAW_POWER] if records == LAW_RECORDS else [PER_RECORD, LAW_POWER]:
            usual = REPEATS if records < LARGE else REPEATS_WHEN_LARGE
            count = repeats or (REPEATS_PER_RECORD if power == PER_RECORD else usual)
            name = f"{records}" if power == LAW_POWER else f"{records}, rare characters a record"
            raw = find_corpus(records, corpora, power)
            row = rows[name] = compare_sides(raw, folder / "runs", count)
            print(
                f"\n{records:,} records, {row['raw_mb']:.1f} MB, {row['rare_characters']:,} rare "
                f"characters; both keep the same {row['kept']:,}"
            )
            seconds = {"median s": "seconds.median", "min s": "seconds.min"}
            print_table(
                row["sides"], seconds | {"process s": "process_seconds.median"} | MEMORY_COLUMNS
            )
            print(f"{row['ratio']} times as fast, with reports {row['ratio_full']} times")
            shutil.rmtree(folder / "runs")
    return rows


def draw_curve(sizes: list[int], corpora: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Run the product alone at each size; print and return the figures."""
    rows: dict[str, dict[str, Any]] = {}
    imports = b""
    for records in sizes:
        runs = Runs(find_corpus(records, corpora), folder / f"curve-{records}")
        if not rows:
            runs.product()
            imports = runs.imports.read_bytes()
        runs.imports.write_bytes(imports)
        run = runs.product()
        seconds = run[0]["seconds"]
        rows[str(records)] = {
            "raw_mb": round(runs.raw_mb, 1),
            "records_per_second": round(records / seconds),
            **summarize([run]),
        }
        shutil.rmtree(runs.project)
    columns = {"raw MB": "raw_mb", "s": "seconds.median", "records/s": "records_per_second:,"}
    print_table(rows, columns | MEMORY_COLUMNS, "records")
    return rows


def print_profile(raw: Path, folder: Path) -> None:
    """Print the seconds of each node's phases."""
    runs = Runs(raw, folder)
    runs.product()
    measured, _ = runs.product()
    phases = {**measured["phases"], "all": measured["seconds"]}
    print_table({name: {"s": seconds} for name, seconds in phases.items()}, {"s": "s:.3f"})


def main() -> None:
    """Measure, print the tables, and keep the result unless sizes were chosen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="other numbers of records")
    parser.add_argument("--repeats", type=int, help="default: 7, from 100,000 records on 3")
    parser.add_argument("--folder", type=Path, help="where corpora are kept; default: nowhere")
    parser.add_argument("--curve", action="store_true", help="the product alone, up to a million")
    parser.add_argument("--profile", action="store_true", help="the product's seconds by phase")
    options = parser.parse_args()
    keep = options.sizes is None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = options.folder or folder / "corpora"
        corpora.mkdir(parents=True, exist_ok=True)
        sizes = options.sizes or list(CURVE if options.curve else SIZES)
        if options.profile:
            print_profile(find_corpus(sizes[-1], corpora), folder / "profile")
        elif options.curve:
            rows = draw_curve(sizes, corpora, folder)
            rates = [row["records_per_second"] for row in rows.values()]
            # of the largest to the smallest corpus
            ratio = round(rates[-1] / rates[0], 3)
            record("data_filtering_curve", {"ratio": ratio, "curve": rows}, keep=keep)
        else:
            rows = compare_sizes(sizes, corpora, folder, options.repeats)
            ratio = next(iter(rows.values()))["ratio"]
            record("data_filtering", {"ratio": ratio, "corpora": rows}, keep=keep)


if __name__ == "__main__":
    main()
