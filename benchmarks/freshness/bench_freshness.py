"""How long it takes to compare all outputs with their records, against asking whether they exist.

    make demo
    python benchmarks/freshness/bench_freshness.py --env demo
    python benchmarks/freshness/bench_freshness.py --model-gb 15

Both sides decide which nodes ``--only-missing-outputs`` runs, on the same catalog, in turn; each
side's median counts. Kedro alone looks at existence. With ``--env`` the outputs are those of a
finished run in ``data/``; with ``--model-gb`` they are a model of that size in sparse files below
``--folder``, and a small file made of it. The first fingerprint, which hashes
the files, is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner

from benchmarks.harness.recording import PROJECT, print_table, record
from ja_instruct.settings import LIBRARIES
from kedro_freshness.fingerprints import fingerprint_path
from kedro_freshness.inspection import Inspection
from kedro_freshness.records import Record, complete_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILES = 4
ENVIRONMENT = "local"


def read_project(environment: str) -> tuple[DataCatalog, Pipeline, Mapping[str, Any]]:
    """Return catalog, default pipeline and parameters of the project."""
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(PROJECT)
    with KedroSession.create(PROJECT, env=environment) as session:
        context = session.load_context()
        parameters = context.config_loader["parameters"]
        return context.catalog, pipelines["__default__"], parameters


def make_model(folder: Path, size_gb: float) -> tuple[DataCatalog, Pipeline, Mapping[str, Any]]:
    """Write a model of sparse files, and a report with the record that it was made of the model."""
    model, report = folder / "model", folder / "report.json"
    model.mkdir()
    for number in range(FILES):
        with (model / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(int(size_gb * 1e9 / FILES))
    report.write_text("{}")
    datasets = {
        "model": {"type": "pickle.PickleDataset", "filepath": str(model)},
        "report": {"type": "json.JSONDataset", "filepath": str(report)},
    }
    inputs = {"model": fingerprint_path(model)}
    made = Record("report", "report", ENVIRONMENT, {}, inputs, output=fingerprint_path(report))
    complete_record(report, made)
    pipeline = Pipeline([node(len, "model", "report", name="report")])
    return DataCatalog.from_config(datasets), pipeline, {}


def by_existence(catalog: DataCatalog, pipeline: Pipeline) -> int:
    """Return how many nodes Kedro alone would run."""
    return len(SequentialRunner()._filter_pipeline_for_missing_outputs(pipeline, catalog).nodes)


def by_records(
    catalog: DataCatalog, pipeline: Pipeline, parameters: Mapping[str, Any], environment: str
) -> set[str]:
    """Return the outputs that are not fresh."""
    inspection = Inspection([pipeline], catalog, environment, parameters, LIBRARIES)
    return inspection.remakes(pipeline).outputs


def seconds_of(action: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Time both sides in turn, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--env", help="environment of a finished run")
    what.add_argument("--model-gb", type=float, help="size of a model beside a small file")
    parser.add_argument("--folder", type=Path, help="where the model is written")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        started = time.perf_counter()
        if options.env:
            catalog, pipeline, parameters = read_project(options.env)
        else:
            catalog, pipeline, parameters = make_model(Path(folder), options.model_gb)
        prepared = time.perf_counter() - started
        environment = options.env or ENVIRONMENT
        sides = {
            "existence": lambda: by_existence(catalog, pipeline),
            "records": lambda: by_records(catalog, pipeline, parameters, environment),
        }
        stale = by_records(catalog, pipeline, parameters, environment)
        if stale:
            sys.exit(f"not fresh: {', '.join(sorted(stale))}; finish a run first")
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.runs):
            for side, action in sides.items():
                times[side].append(seconds_of(action))
    medians = {side: statistics.median(found) for side, found in times.items()}
    print_table({side: {"s": found} for side, found in medians.items()}, {"seconds": "s:.3f"})
    result = {
        "seconds": medians,
        "ratio": medians["records"] / medians["existence"],
        "outputs": len(pipeline.all_outputs()),
    }
    if options.model_gb:
        result |= {"model_gb": options.model_gb, "seconds_first": prepared}
    record(f"freshness_{'model' if options.model_gb else options.env}", result)


if __name__ == "__main__":
    main()
