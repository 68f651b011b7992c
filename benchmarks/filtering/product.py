"""Runs the filter in a copy of the project; ``bench_data_filtering.py`` starts it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.hooks import hook_impl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.memory import Usage, run_measured
from benchmarks.harness.recording import PROJECT

ENVIRONMENT = "benchmark"
OUTPUTS = ("filtered_pairs", "rejected_pairs")


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
    command = [sys.executable, __file__, str(project), *["full"] * full]
    # the copy's package, not the installed one; no download
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1"}
    usage, output = run_measured(command, environment)
    # logs may follow
    return json.loads(re.findall(r'^{"seconds".*}$', output, re.MULTILINE)[-1]), usage


class RunClock:
    """A Kedro hook that notes when the run starts, and the modules imported by then."""

    @hook_impl(tryfirst=True)  # before the product's own checks, which read the raw file
    def before_pipeline_run(self) -> None:
        """Start the clock."""
        self.imported = set(sys.modules)
        self.started = time.perf_counter()


def main() -> None:
    """Run the pipeline once and print its seconds.

    The first run lists its imports, which later ones repeat before the clock starts.
    """
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    project, full = Path(sys.argv[1]), len(sys.argv) > 2
    bootstrap_project(project)
    imports = project.parent / "imports.json"
    for name in json.loads(imports.read_text("utf-8")) if imports.is_file() else []:
        # some modules are created by others and cannot be imported
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
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


if __name__ == "__main__":
    main()
