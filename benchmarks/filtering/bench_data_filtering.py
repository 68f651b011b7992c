"""The data filtering pipeline against the recipe written straightforwardly: time, memory, results.

    python benchmarks/filtering/bench_data_filtering.py

filters the 11,020 real conversations and 130,000 made of them (``make_conversations.py``) with
``reference.py`` and with the product in turn, each in a process of its own. The
product runs as its users run it, by its own catalog and parameters, in a copy of the project with
one more environment, in which only ``raw_conversations`` and ``run_name`` differ; MLflow's hook is
taken out, so no store is opened, and nothing is downloaded. Both must keep the same records with
the same texts in the same order, and what the product rejects must be the others; else the
benchmark fails.

Seconds count from just before the raw file is opened to the last byte written. For the product that
includes its checks before the run; *outputs* is a run to ``filtered_pairs`` and ``rejected_pairs``
alone (``--to-outputs``), *full* one with the reports. Imports do not count: a first run, not timed,
notes what is imported meanwhile, and the timed ones import it beforehand (what worker processes
import does count). *process* is all from start to exit, imports included.

Memory is that of the whole process tree. *resident* is the most that samples found or, of a
process alone, the kernel's high-water mark; *private* is the anonymous part of it, sampled: what is
not a view of a file. Of pages that several processes share each counts its part.

The corpus of 130,000 is made twice: with as many rare characters a record as the real ones have,
and with as many as a single real corpus of that size would have (``make_conversations.py`` says
how). The recipe's way, one banned text after the other, takes a multiple of the time on the first.

``--curve`` runs the product alone on 10,000, 100,000 and 1,000,000 made records, ``--profile``
prints where its time goes. Made corpora need the real conversations beside the project; with
``--folder`` they are kept there and used again.
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
from benchmarks.filtering.product import ENVIRONMENT, OUTPUTS, STAGES, copy_project, run_in_process
from benchmarks.harness.process_memory import Usage, describe_memory, run_measured
from benchmarks.harness.recording import record

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Records, and how many times faster than the reference the product is to be.
GOALS = {LAW_RECORDS: 12.0, 130_000: 25.0}
REPEATS = 7
LARGE = 100_000
REPEATS_WHEN_LARGE = 3
#: The power of the records by which rare characters grow, where it is not that of a real corpus.
PER_RECORD = 1.0
REPEATS_PER_RECORD = 1
CURVE = (10_000, 100_000, 1_000_000)
REFERENCE = Path(__file__).with_name("reference.py")
FILTERED, REJECTED = (f"data/03_primary/{ENVIRONMENT}/{name}.jsonl" for name in OUTPUTS)


class Runs:
    """Runs of both sides on one corpus, in a folder of their own."""

    def __init__(self, raw: Path, folder: Path) -> None:
        """Copy the project."""
        self.raw = raw
        self.project = folder / "project"
        self.kept = folder / "kept.jsonl"
        self.imports = folder / "imports.json"
        self._result = folder / "product.json"
        copy_project(self.project, raw)

    def reference(self, rare: str = "list") -> tuple[dict[str, Any], Usage]:
        """Return what the reference says of itself, and its usage."""
        command = [sys.executable, str(REFERENCE), str(self.raw), str(self.kept), "--rare", rare]
        usage, output = run_measured(command)
        return json.loads(output.splitlines()[-1]), usage

    def product(self, *, full: bool = True, profile: bool = False) -> tuple[dict[str, Any], Usage]:
        """Return what the product's process measured, and its usage."""
        return run_in_process(self.project, self._result, profile=profile, full=full)

    def compare(self) -> int:
        """Return the number of kept records; exits when reference and product differ."""
        kept, rejected = (self.project / path for path in (FILTERED, REJECTED))
        number = 0
        for number, (theirs, ours) in enumerate(
            zip_longest(read_lines(self.kept), read_lines(kept)), start=1
        ):
            if (
                theirs is None
                or ours is None
                or any(ours.get(key) != theirs[key] for key in theirs)
            ):
                sys.exit(
                    f"kept record {number} differs:\n  reference {theirs!s:.600}\n"
                    f"  product {ours!s:.600}"
                )
        kept_records, rejected_records = read_lines(kept), read_lines(rejected)
        next_kept = next(kept_records, None)
        for line, source in enumerate(read_lines(self.raw), start=1):
            if next_kept is not None and next_kept["id"] == source["id"]:
                next_kept = next(kept_records, None)
            elif (other := next(rejected_records, None)) is None or other["id"] != source["id"]:
                sys.exit(f"{self.raw}:{line} is neither kept nor rejected, or not in its place")
        if next(rejected_records, None) is not None:
            sys.exit(f"{rejected} holds more than what is not kept")
        return number


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON Lines file."""
    # split on \n alone: some texts hold U+2028
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def find_corpus(records: int, folder: Path, power: float = LAW_POWER) -> Path:
    """Return a corpus in ``folder``, made unless it is there; 11,020 are the real ones."""
    name = str(records) if power == LAW_POWER else f"{records}-power-{power}"
    path = folder / ("real.jsonl" if records == LAW_RECORDS else f"{name}.jsonl")
    if not path.is_file() and records == LAW_RECORDS:
        path.write_bytes(b"".join(file.read_bytes() for file in find_real_files()))
    elif not path.is_file():
        write_corpus(path, records, seed=0, power=power)
    return path


def summarize(values: list[float]) -> dict[str, float]:
    """Return median and minimum."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3)}


def compare_sides(raw: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Run reference and product in turn; return seconds, ratios and MB."""
    runs = Runs(raw, folder)
    runs.product()  # bytecode, the list of imports
    theirs, ours, ours_full = [], [], []
    kept = 0
    for _ in range(repeats):
        theirs.append(runs.reference())
        ours.append(runs.product(full=False))
        runs.compare()
        ours_full.append(runs.product())
        kept = runs.compare()
    by_set = runs.reference("set")[0]["seconds"]
    runs.compare()
    reference = summarize([own["seconds"] for own, _ in theirs])
    outputs, full = (summarize([own["seconds"] for own, _ in runs]) for runs in (ours, ours_full))
    raw_mb = raw.stat().st_size / 1e6
    return {
        "raw_mb": round(raw_mb, 1),
        "kept": kept,
        "rare_characters": theirs[0][0]["rare_characters"],
        "repeats": repeats,
        "reference_seconds": reference,
        "reference_with_set_seconds": round(by_set, 3),
        "product_outputs_seconds": outputs,
        "product_full_seconds": full,
        "reference_process_seconds": summarize([usage.seconds for _, usage in theirs]),
        "product_outputs_process_seconds": summarize([usage.seconds for _, usage in ours]),
        "product_full_process_seconds": summarize([usage.seconds for _, usage in ours_full]),
        "ratio": round(reference["median"] / outputs["median"], 2),
        "ratio_full": round(reference["median"] / full["median"], 2),
        "ratio_to_set": round(by_set / outputs["median"], 2),
        "reference_memory": describe_memory([usage for _, usage in theirs], raw_mb),
        "product_outputs_memory": describe_memory([usage for _, usage in ours], raw_mb),
        "product_full_memory": describe_memory([usage for _, usage in ours_full], raw_mb),
        "product_resident_at_start_mb": round(ours[0][0]["at_start_mb"], 1),
    }


def compare_sizes(
    sizes: list[int], corpora: Path, folder: Path, arguments: argparse.Namespace
) -> None:
    """Compare at each size, print the tables, and write the result unless sizes were chosen."""
    rows = {}
    for records in sizes:
        powers = [LAW_POWER] if records == LAW_RECORDS else [PER_RECORD, LAW_POWER]
        for power in powers:
            usual = REPEATS if records < LARGE else REPEATS_WHEN_LARGE
            repeats = arguments.repeats or (REPEATS_PER_RECORD if power == PER_RECORD else usual)
            name = f"{records}" if power == LAW_POWER else f"{records}, rare characters a record"
            rows[name] = compare_sides(
                find_corpus(records, corpora, power), folder / "runs", repeats
            )
            print_comparison(records, rows[name])
            shutil.rmtree(folder / "runs")
    summary = {"ratio": next(iter(rows.values()))["ratio"], "corpora": rows}
    if arguments.sizes is None:
        record("data_filtering", summary)
    else:
        print(json.dumps(summary))


def print_comparison(records: int, row: dict[str, Any]) -> None:
    """Print one size for people."""
    goal = f", goal {GOALS[records]:.0f}x" if records in GOALS else ""
    print(
        f"\n{records:,} records, {row['raw_mb']:.1f} MB, {row['rare_characters']:,} rare "
        f"characters; {row['kept']:,} kept by both, identical\n"
        f"{'':<26}{'median s':>9}{'min s':>9}{'process s':>11}{'resident MB':>13}"
        f"{'private MB':>12}"
    )
    for side, label in (
        ("reference", "reference"),
        ("product_outputs", "product, outputs"),
        ("product_full", "product, full"),
    ):
        seconds, process = row[f"{side}_seconds"], row[f"{side}_process_seconds"]["median"]
        memory = row[f"{side}_memory"]
        print(
            f"{label:<26}{seconds['median']:>9.3f}{seconds['min']:>9.3f}{process:>11.2f}"
            f"{memory['resident_mb']:>13.0f}{memory['private_mb']:>12.0f}"
        )
    print(f"{'reference, rare as a set':<26}{row['reference_with_set_seconds']:>9.3f}  (one run)")
    memory = row["product_full_memory"]
    print(
        f"outputs {row['ratio']:.1f}x{goal}; full {row['ratio_full']:.1f}x; against the set "
        f"{row['ratio_to_set']:.1f}x; resident at most {memory['resident_mb']:.0f} MB in "
        f"{memory['processes']} process(es), goal {memory['goal_mb']:.0f} MB"
    )


def draw_curve(sizes: list[int], corpora: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the product alone at each size, print and return the figures."""
    print(
        f"{'records':>10}{'raw MB':>9}{'full s':>11}{'records/s':>11}"
        f"{'resident MB':>13}{'private MB':>12}{'goal MB':>9}"
    )
    rows: list[dict[str, Any]] = []
    imports = b""
    for records in sizes:
        raw = find_corpus(records, corpora)
        runs = Runs(raw, folder / f"curve-{records}")
        if not rows:
            runs.product()
            imports = runs.imports.read_bytes()
        runs.imports.write_bytes(imports)
        measured, usage = runs.product()
        row = {
            "records": records,
            "raw_mb": round(raw.stat().st_size / 1e6, 1),
            "seconds": round(measured["seconds"], 3),
            "records_per_second": round(records / measured["seconds"]),
            **describe_memory([usage], raw.stat().st_size / 1e6),
        }
        print(
            f"{records:>10,}{row['raw_mb']:>9.1f}{row['seconds']:>11.2f}"
            f"{row['records_per_second']:>11,}"
            f"{row['resident_mb']:>13.0f}{row['private_mb']:>12.0f}{row['goal_mb']:>9.0f}",
            flush=True,
        )
        rows.append(row)
        shutil.rmtree(runs.project)
    return rows


def print_profile(raw: Path, folder: Path) -> None:
    """Print the seconds by node, without a profiler, and the largest functions, with it."""
    runs = Runs(raw, folder)
    runs.product()
    plain, _ = runs.product()
    print(f"{'node':<28}{'load s':>9}{'run s':>9}{'save s':>9}{'other s':>9}")
    for name, row in plain["nodes"].items():
        print(f"{name:<28}" + "".join(f"{row[key]:>9.3f}" for key in STAGES))
    print(f"{'until the end':<28}{plain['seconds']:>9.3f}\n")
    profiled, _ = runs.product(profile=True)
    print(f"{'own s':>9}{'calls':>12}  function (main thread); {profiled['seconds']:.2f} s in all")
    for row in profiled["functions"]:
        print(f"{row['seconds']:>9.3f}{row['calls']:>12,}  {row['name']}")


def write_curve(rows: list[dict[str, Any]]) -> None:
    """Keep the curve as a file and print it; ``ratio``: records/s of the last to the first size."""
    ratio = round(rows[-1]["records_per_second"] / rows[0]["records_per_second"], 3)
    record("data_filtering_curve", {"ratio": ratio, "curve": rows})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="other numbers of records")
    parser.add_argument("--repeats", type=int, help="7, from 100,000 records on 3")
    parser.add_argument("--folder", type=Path, help="where corpora are kept; default: nowhere")
    parser.add_argument("--curve", action="store_true", help="the product alone, up to a million")
    parser.add_argument("--profile", action="store_true", help="where the product's time goes")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for, print the tables, write the result unless sizes were chosen."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = arguments.folder or folder / "corpora"
        corpora.mkdir(parents=True, exist_ok=True)
        sizes = arguments.sizes or list(CURVE if arguments.curve else GOALS)
        if arguments.profile:
            print_profile(find_corpus(sizes[-1], corpora), folder / "profile")
        elif arguments.curve:
            rows = draw_curve(sizes, corpora, folder)
            write_curve(rows) if arguments.sizes is None else print(json.dumps(rows))
        else:
            compare_sizes(sizes, corpora, folder, arguments)


if __name__ == "__main__":
    main()
