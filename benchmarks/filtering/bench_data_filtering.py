"""The data filtering pipeline against the recipe written straightforwardly: time, memory, results.

    python benchmarks/filtering/bench_data_filtering.py [--curve]

filters the 11,020 real conversations and 130,000 synthetic ones (``make_conversations.py``) with
``reference.py`` and with the product, by its own catalog and parameters, in turn, each in a process
of its own. Both must keep the same records with the same texts in the same order, and the product
must reject the others; else the benchmark fails. There are two corpora of 130,000: with as many
rare characters per record as the real ones, and with as many as a real corpus of that size has.

Seconds count from before the raw file is opened to the last byte written, the product's checks
included: *outputs* is a run to the kept and rejected pairs alone, *full* one with the reports.
Imports do not count, except in worker processes. *process* is everything from start to exit.
Memory is that of the process tree: *resident* is the peak, *private* leaves out shared pages.

``--curve`` runs the product alone on 10,000, 100,000 and 1,000,000 synthetic records. Synthetic
corpora need the real conversations beside the project; ``--folder`` keeps them for later calls.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.filtering.make_conversations import (
    LAW_POWER,
    LAW_RECORDS,
    find_real_files,
    write_corpus,
)
from benchmarks.harness.memory import Usage, run_measured
from benchmarks.harness.recording import PROJECT, print_table, record

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (LAW_RECORDS, 130_000)
CURVE = (10_000, 100_000, 1_000_000)
LARGE = 100_000
REPEATS, REPEATS_WHEN_LARGE, REPEATS_PER_RECORD = 7, 3, 1
#: The power of the records with which rare characters grow, if each record has the same number.
PER_RECORD = 1.0
ENVIRONMENT = "benchmark"
OUTPUTS = ("filtered_pairs", "rejected_pairs")
#: The first argument of the process that runs the product.
RUN = "run-product"
REFERENCE = Path(__file__).with_name("reference.py")
COLUMNS = {
    "median s": "seconds.median",
    "min s": "seconds.min",
    "process s": "process_seconds",
    "resident MB": "resident_mb",
    "private MB": "private_mb",
}

Run = tuple[dict[str, Any], Usage]


def copy_project(target: Path, raw: Path) -> None:
    """Copy what a run needs and add an environment that reads ``raw``."""
    leave_out = shutil.ignore_patterns("local", "__pycache__")
    for name in ("conf", "src"):  # Kedro refuses a source folder that is a link
        shutil.copytree(PROJECT / name, target / name, ignore=leave_out)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, target)
    source = {"type": "ja_instruct.datasets.JSONLinesDataset", "filepath": str(raw)}
    files = {
        "globals": {"run_name": ENVIRONMENT},
        "catalog": {"raw_conversations": source},
        # like the reference, log nothing; the store is still opened, and its memory counts
        "mlflow": {"tracking": {"disable_tracking": {"pipelines": ["data_filtering"]}}},
    }
    environment = target / "conf" / ENVIRONMENT
    environment.mkdir()
    for name, content in files.items():
        (environment / f"{name}.yml").write_text(yaml.safe_dump(content), "utf-8")


def run_in_process(project: Path, *, full: bool) -> tuple[dict[str, Any], Usage]:
    """Run the pipeline in a process of its own; return its seconds and its usage."""
    shutil.rmtree(project / "data", ignore_errors=True)
    command = [sys.executable, __file__, RUN, str(project), *["full"] * full]
    # the copy's package, not the installed one; no download
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1"}
    usage, output = run_measured(command, environment)
    # logs may follow
    return json.loads(re.findall(r'^{"seconds".*}$', output, re.MULTILINE)[-1]), usage


def run_product(project: Path, *, full: bool) -> None:
    """Run the pipeline once and print its seconds.

    The first run lists its imports, which later ones repeat before the clock starts.
    """
    from kedro.framework.hooks import hook_impl
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project)
    imports = project.parent / "imports.json"
    for name in json.loads(imports.read_text("utf-8")) if imports.is_file() else []:
        # some modules are created by others and cannot be imported
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    class RunClock:
        @hook_impl(tryfirst=True)  # before the product's own checks, which read the raw file
        def before_pipeline_run(self) -> None:
            self.imported = set(sys.modules)
            self.started = time.perf_counter()

    clock = RunClock()
    session: Any
    with KedroSession.create(project, env=ENVIRONMENT) as session:
        # Kedro registers hooks from a project's settings alone, and these are the product's
        session._hook_manager.register(clock)
        session.run(pipeline_names=["data_filtering"], to_outputs=None if full else OUTPUTS)
        seconds = time.perf_counter() - clock.started
    if not imports.is_file():
        named = [name for name in sys.modules if name not in clock.imported]
        imports.write_text(json.dumps(named), "utf-8")
    print(json.dumps({"seconds": seconds}))


def run_reference(raw: Path, kept: Path, rare: str = "list") -> Run:
    """Run the reference; return its measurements and usage."""
    usage, output = run_measured([sys.executable, str(REFERENCE), *map(str, (raw, kept)), rare])
    return json.loads(output.splitlines()[-1]), usage


def check_outputs(raw: Path, kept: Path, project: Path) -> int:
    """Return the number of kept records; exits if reference and product differ."""
    data = project / "data/03_primary" / ENVIRONMENT
    filtered, rejected = (data / f"{name}.jsonl" for name in OUTPUTS)
    number = 0
    for number, (theirs, ours) in enumerate(
        zip_longest(read_lines(kept), read_lines(filtered), fillvalue={}), start=1
    ):
        if not theirs or any(ours.get(key) != theirs[key] for key in theirs):
            sys.exit(
                f"kept record {number} differs:\n  reference {theirs!s:.600}\n"
                f"  product {ours!s:.600}"
            )
    # merged by their order in the raw file, kept and rejected records are the raw ones
    kept_ids, rejected_ids = (
        [line["id"] for line in read_lines(path)][::-1] for path in (filtered, rejected)
    )
    for line, source in enumerate(read_lines(raw), start=1):
        ids = kept_ids if kept_ids[-1:] == [source["id"]] else rejected_ids
        if ids[-1:] != [source["id"]]:
            sys.exit(f"{raw}:{line} is neither kept nor rejected, or not in its place")
        ids.pop()
    if kept_ids or rejected_ids:
        sys.exit(f"{filtered} and {rejected} have more records than {raw}")
    return number


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON Lines file."""
    # split on \n alone: some texts contain U+2028
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def find_corpus(records: int, folder: Path, power: float = LAW_POWER) -> Path:
    """Return a corpus in ``folder``, made if it is missing; 11,020 are the real ones."""
    path = folder / f"{records}-power-{power}.jsonl"
    if not path.is_file() and records == LAW_RECORDS:
        path.write_bytes(b"".join(file.read_bytes() for file in find_real_files()))
    elif not path.is_file():
        print(f"making {path.name}", flush=True)
        write_corpus(path, records, power)
    return path


def summarize(runs: list[Run]) -> dict[str, Any]:
    """Return a side's seconds and memory peaks."""
    seconds, usages = [own["seconds"] for own, _ in runs], [usage for _, usage in runs]
    return {
        "seconds": {
            "median": round(statistics.median(seconds), 3),
            "min": round(min(seconds), 3),
        },
        "process_seconds": round(statistics.median(usage.seconds for usage in usages), 3),
        "resident_mb": round(max(usage.resident_mb for usage in usages), 1),
        "private_mb": round(max(usage.private_mb for usage in usages), 1),
    }


def compare_sides(raw: Path, project: Path, repeats: int) -> dict[str, Any]:
    """Run reference and product in turn; print and return the figures of one corpus."""
    kept = project.parent / "kept.jsonl"
    runs: dict[str, list[Run]] = {"reference": [], "outputs": [], "full": []}
    for _ in range(repeats):
        runs["reference"].append(run_reference(raw, kept))
        for side in ("outputs", "full"):
            runs[side].append(run_in_process(project, full=side == "full"))
            count = check_outputs(raw, kept, project)
    runs["reference, rare characters as a set"] = [run_reference(raw, kept, "set")]
    check_outputs(raw, kept, project)
    sides = {name: summarize(one) for name, one in runs.items()}
    print_table(sides, COLUMNS, f"{raw.name}: both keep the same {count:,}")
    seconds = {name: side["seconds"]["median"] for name, side in sides.items()}
    return {
        "ratio": round(seconds["reference"] / seconds["outputs"], 2),
        "ratio_full": round(seconds["reference"] / seconds["full"], 2),
        "raw_mb": round(raw.stat().st_size / 1e6, 1),
        "kept": count,
        "rare_characters": runs["reference"][0][0]["rare_characters"],
        "repeats": repeats,
        "sides": sides,
    }


def main() -> None:
    """Measure, print the tables, and keep the result unless sizes were chosen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="other numbers of records")
    parser.add_argument("--repeats", type=int, help="default: 7, from 100,000 records on 3")
    parser.add_argument("--folder", type=Path, help="where corpora are kept; default: nowhere")
    parser.add_argument("--curve", action="store_true", help="the product alone, up to a million")
    options = parser.parse_args()
    sizes = options.sizes or (CURVE if options.curve else SIZES)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        corpora = options.folder or Path(temporary)
        corpora.mkdir(parents=True, exist_ok=True)
        project = Path(temporary) / "project"
        for records in sizes:
            real = options.curve or records == LAW_RECORDS
            for power in (LAW_POWER,) if real else (PER_RECORD, LAW_POWER):
                raw = find_corpus(records, corpora, power)
                copy_project(project, raw)
                if not rows:
                    run_in_process(project, full=True)  # bytecode, the list of imports
                usual = REPEATS if records < LARGE else REPEATS_WHEN_LARGE
                repeats = options.repeats or (REPEATS_PER_RECORD if power == PER_RECORD else usual)
                if options.curve:
                    rows[raw.stem] = summarize([run_in_process(project, full=True)])
                else:
                    rows[raw.stem] = compare_sides(raw, project, repeats)
                shutil.rmtree(project)
    if options.curve:
        print_table(rows, COLUMNS)
        rates = [
            size / row["seconds"]["min"] for size, row in zip(sizes, rows.values(), strict=True)
        ]
        # records a second, of the largest to the smallest corpus
        result = {"ratio": round(rates[-1] / rates[0], 3), "curve": rows}
    else:
        result = {"ratio": next(iter(rows.values()))["ratio"], "corpora": rows}
    name = "data_filtering_curve" if options.curve else "data_filtering"
    record(name, result, keep=options.sizes is None)


if __name__ == "__main__":
    if sys.argv[1:2] == [RUN]:
        run_product(Path(sys.argv[2]), full=len(sys.argv) > 3)
    else:
        main()
