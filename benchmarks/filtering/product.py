"""A run of the data filtering pipeline in a copy of the project, timed and in a process of its own.

    python benchmarks/filtering/product.py PROJECT RESULT

is what ``run_in_process`` starts; it takes a copy that ``copy_project`` made. Seconds and imports
are counted as ``bench_data_filtering.py`` says.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib
import json
import os
import pstats
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kedro.framework.hooks import hook_impl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.process_memory import Usage, read_memory, run_measured
from benchmarks.harness.recording import PROJECT

if TYPE_CHECKING:
    from kedro.pipeline.node import Node

ENVIRONMENT = "benchmark"
OUTPUTS = ("filtered_pairs", "rejected_pairs")
STAGES = ("load", "run", "save", "other")
FUNCTIONS_SHOWN = 15


def copy_project(target: Path, raw: Path) -> None:
    """Copy what a run needs, with one more environment, which reads ``raw``."""
    target.mkdir(parents=True)
    leave_out = shutil.ignore_patterns("local", "__pycache__")
    for name in ("conf", "src"):  # Kedro refuses a source folder that is a link
        shutil.copytree(PROJECT / name, target / name, ignore=leave_out)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, target)
    source = {"type": "ja_instruct.datasets.JSONLinesDataset", "filepath": str(raw)}
    files = {
        "globals": {"run_name": ENVIRONMENT},
        "catalog": {"raw_conversations": source},
        # the reference logs nothing either; the store is opened all the same, and its memory counts
        "mlflow": {"tracking": {"disable_tracking": {"pipelines": ["data_filtering"]}}},
    }
    environment = target / "conf" / ENVIRONMENT
    environment.mkdir()
    for name, content in files.items():
        (environment / f"{name}.yml").write_text(yaml.safe_dump(content), "utf-8")


def run_in_process(
    project: Path, result: Path, *, profile: bool, full: bool
) -> tuple[dict[str, Any], Usage]:
    """Run the pipeline in a process of its own; return what that measured, and its usage."""
    shutil.rmtree(project / "data", ignore_errors=True)
    command = [sys.executable, __file__, str(project), str(result)]
    # the copy's package, not the one that is installed; no download; no KEDRO_ENV
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1"}
    command += ["--profile"] * profile + ["--full"] * full
    usage, _ = run_measured(command, environment)
    return json.loads(result.read_text("utf-8")), usage


def run_product(project: Path, result: Path, *, profile: bool, full: bool) -> None:
    """Run the pipeline in this process and write what was measured to ``result``."""
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project)
    known = result.with_name("imports.json")
    for name in json.loads(known.read_text("utf-8")) if known.is_file() else []:
        # some names are made by another module and no file of their own
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    profiler = cProfile.Profile() if profile else None
    clock = Clock(profiler)
    session: Any
    with KedroSession.create(project, env=ENVIRONMENT) as session:
        # Kedro registers hooks from a project's settings alone, and these are the product's
        hooks = session._hook_manager
        hooks.register(clock)
        session.run(pipeline_names=["data_filtering"], to_outputs=None if full else OUTPUTS)
        seconds = time.perf_counter() - clock.started
    if profiler is not None:
        profiler.disable()
    if not known.is_file():
        named = [name for name in sys.modules if name not in clock.imported]
        known.write_text(json.dumps(named), "utf-8")
    measured = {
        "seconds": seconds,
        "nodes": clock.seconds,
        "at_start_mb": clock.at_start_mb,
        "functions": largest_functions(profiler) if profiler is not None else [],
    }
    result.write_text(json.dumps(measured), "utf-8")


def largest_functions(profiler: cProfile.Profile) -> list[dict[str, Any]]:
    """Return the functions that take most time themselves: seconds, calls, name."""
    stats: Any = pstats.Stats(profiler)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])
    return [
        {
            "seconds": round(own, 3),
            "calls": calls,
            "name": f"{Path(file).name}:{line} {name}" if line else name,
        }
        for (file, line, name), (_, calls, own, _, _) in rows[:FUNCTIONS_SHOWN]
    ]


class Clock:
    """A Kedro hook: when the run starts, what each node takes to load, run and save."""

    def __init__(self, profiler: cProfile.Profile | None) -> None:
        """Take the profiler to start with the run, if any."""
        self.profiler = profiler
        self.seconds: dict[str, dict[str, float]] = {}
        self.imported: set[str] = set()
        self.at_start_mb = self.started = 0.0
        self._last = 0.0

    @hook_impl(tryfirst=True)  # the product's own checks read the raw file
    def before_pipeline_run(self) -> None:
        """Start."""
        self.imported = set(sys.modules)
        self.at_start_mb = read_memory(Path("/proc/self/status"), "VmRSS")
        self.started = self._last = time.perf_counter()
        if self.profiler is not None:
            self.profiler.enable()

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """What came before the first node are the checks."""
        self._add(node.name if self.seconds else "checks", "other")

    @hook_impl
    def after_dataset_loaded(self, node: Node) -> None:
        """Loaded."""
        self._add(node.name, "load")

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Between the two, Kedro and other hooks."""
        self._add(node.name, "other")

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Computed."""
        self._add(node.name, "run")

    @hook_impl
    def before_dataset_saved(self, node: Node) -> None:
        """Between the two, Kedro and other hooks."""
        self._add(node.name, "other")

    @hook_impl(tryfirst=True)
    def after_dataset_saved(self, node: Node) -> None:
        """Saved."""
        self._add(node.name, "save")

    def _add(self, name: str, what: str) -> None:
        now = time.perf_counter()
        row = self.seconds.setdefault(name, dict.fromkeys(STAGES, 0.0))
        row[what] += now - self._last
        self._last = now


def main() -> None:
    """Run the pipeline once in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("project", type=Path, help="a copy of the project")
    parser.add_argument("result", type=Path, help="where to write what was measured")
    parser.add_argument("--full", action="store_true", help="with the reports")
    parser.add_argument("--profile", action="store_true", help="with the largest functions")
    arguments = parser.parse_args()
    run_product(arguments.project, arguments.result, profile=arguments.profile, full=arguments.full)


if __name__ == "__main__":
    main()
