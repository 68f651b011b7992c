"""The sides of a benchmark, each run in a process of its own, so that one may fail alone.

A side's figures are kept as ``<side>.json`` in a folder, so that several calls can share the work:
each call reports all sides that the folder has.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Side = dict[str, Any]


def make_parser(
    description: str | None, shapes: Iterable[str], sides: Iterable[str], seconds: float
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that the benchmarks of sides share.

    ``description`` is a module's docstring; without ``shapes`` there is no such argument.
    """
    shapes = list(shapes)
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; created if it is missing")
    if shapes:
        parser.add_argument("--shape", choices=shapes, default=shapes[0])
    parser.add_argument("--sides", default=",".join(sides), help="which to run, by commas")
    parser.add_argument("--set", action="append", default=[], metavar="SIDE:NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=seconds, help="time limit of a side")
    parser.add_argument("--folder", type=Path, help="where the sides' figures are kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser


@contextlib.contextmanager
def working_folder(options: argparse.Namespace) -> Iterator[Path]:
    """Create ``--folder`` (temporary by default) and make it and ``--model`` absolute."""
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = (options.folder or Path(temporary)).resolve()
        options.folder.mkdir(parents=True, exist_ok=True)
        options.model = (options.model or Path(temporary) / "model").resolve()
        yield options.folder


def apply_settings(sides: dict[str, Side], settings: list[str], new_side: Side) -> dict[str, Side]:
    """Return the sides, changed as ``SIDE:NAME=VALUE`` says.

    A NAME that is not a key of a side is a parameter, changed in ``changes``. A side with a new
    name starts as ``new_side``.
    """
    sides = copy.deepcopy(sides)
    for setting in settings:
        side, _, rest = setting.partition(":")
        name, equals, value = rest.partition("=")
        if not equals:
            sys.exit(f"--set {setting}: give SIDE:NAME=VALUE")
        changed = sides.setdefault(side, copy.deepcopy(new_side))
        if name in new_side and name != "changes":
            changed[name] = yaml.safe_load(value)
        else:
            # not in place: sides may share the dictionary
            changed["changes"] = {**changed["changes"], name: yaml.safe_load(value)}
    return sides


def choose(names: str, known: Iterable[str]) -> list[str]:
    """Return the names of a list separated by commas; exits at an unknown one."""
    chosen = [name for name in names.split(",") if name]
    known = list(known)
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"unknown sides: {', '.join(unknown)}. Known are {', '.join(known)}")
    return chosen


def run_side(
    program: Path, job: dict[str, Any], folder: Path, side: str, seconds_max: float
) -> dict[str, Any]:
    """Run ``program JOB RESULT`` and return its result, which is also kept as a file.

    A program writes its result whenever it knows more, so the figures of a side that was stopped
    or failed are kept. ``status`` says how it ended; ``log`` has the end of what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job_path, path, log_path = (folder / f"{side}.{kind}" for kind in ("job.json", "json", "log"))
    job_path.write_text(json.dumps(job, ensure_ascii=False, indent=2), "utf-8")
    path.unlink(missing_ok=True)
    print(f"{side}: started, time limit {seconds_max:.0f} s", flush=True)
    started = time.perf_counter()
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(program), str(job_path), str(path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            # a process group, which is killed with its children
            start_new_session=True,
        )
        status = _wait(process, seconds_max)
    result = read_sides(folder, [side]).get(side, {})
    result |= {"status": status, "process_seconds": round(time.perf_counter() - started, 1)}
    if status != "done":
        result["log"] = log_path.read_text("utf-8", errors="replace")[-1500:]
    path.write_text(json.dumps(result, indent=2), "utf-8")
    print(f"{side}: {status} after {result['process_seconds']} s", flush=True)
    if "log" in result:
        print(result["log"], flush=True)
    return result


def _wait(process: subprocess.Popen[bytes], seconds_max: float) -> str:
    try:
        code = process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds_max:.0f} s"
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return "done" if code == 0 else f"failed with code {code}"


def read_sides(folder: Path, sides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the results that a folder has, by side, from this call or earlier ones."""
    paths = {side: folder / f"{side}.json" for side in sides}
    return {
        side: json.loads(path.read_text("utf-8")) for side, path in paths.items() if path.is_file()
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Replace a side's result atomically: the process may be killed at any moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result), "utf-8")
    new.replace(path)


def run_job(work: Callable[[dict[str, Any], Path], None]) -> None:
    """Run a side's program, started as ``PROGRAM JOB RESULT``: call ``work(job, result path)``."""
    job, result = map(Path, sys.argv[1:])
    work(json.loads(job.read_text("utf-8")), result)
