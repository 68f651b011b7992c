"""Compare the outputs of two commits: records byte for byte, losses and reports by value.

Runs the whole pipeline of both commits, each in a git worktree of its own with the same
interpreter, and compares what a user holds afterwards. Run it before and after a change that must
not alter results::

    python benchmarks/equality/compare_outputs.py --old 9415aa9 --new HEAD --env test --env demo

Filtered and rejected pairs, prompts and answers must be equal to the byte, the losses of training
equal as numbers. Of the JSON reports every other key that differs is printed for a person to
judge (seconds, dates and renamed keys are expected). The last line is JSON; the exit status is 1
if anything that must be equal is not. With ``--folder`` the worktrees are kept and finished runs
are reused. ``--env demo`` takes about 10 minutes a commit on 2 cores and needs the extra ``demo``.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
EQUAL_BYTES = (
    "03_primary/{env}/filtered_pairs.jsonl",
    "03_primary/{env}/rejected_pairs.jsonl",
    "07_model_output/{env}/prompts.jsonl",
    "07_model_output/{env}/output.jsonl",
    "07_model_output/{env}/base_answers.jsonl",
)
LOSSES = "08_reporting/{env}/train_history.json"
REPORTS = ("filter_report", "quantization_report", "train_metrics", "inference_report")
FINISHED = "08_reporting/{env}/report.html"


def check_out(revision: str, folder: Path) -> Path:
    """Return a worktree of ``revision`` below ``folder``, made if it is missing."""
    commit = _git("rev-parse", "--short=12", f"{revision}^{{commit}}")
    tree = folder / commit
    if not tree.exists():
        _git("worktree", "add", "--detach", str(tree), commit)
    return tree


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def run(tree: Path, env: str) -> None:
    """Run the default pipeline of a worktree, unless its report exists."""
    if (tree / "data" / FINISHED.format(env=env)).exists():
        return
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    commands = [[sys.executable, "-m", "kedro", "run", f"--env={env}"]]
    if env == "test":
        commands.insert(0, [sys.executable, "tests/tiny_models.py"])
    for command in commands:
        print(f"{tree.name}: {' '.join(command[1:])}", flush=True)
        with (tree / f"{env}.log").open("a") as log:
            subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=log, check=True)


def losses(tree: Path, env: str) -> list[dict[str, float]]:
    """Return every logged loss with its step."""
    history = json.loads((tree / "data" / LOSSES.format(env=env)).read_text("utf-8"))
    return [
        {key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
        for entry in history
    ]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON by their dotted keys."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if pairs is None:
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for key, one in pairs:
        found |= flatten(one, f"{prefix}{key}.")
    return found


def differences_of_reports(old: Path, new: Path, env: str) -> list[str]:
    """Return a line for every key of a report whose value differs."""
    lines = []
    for name in REPORTS:
        left, right = (
            flatten(json.loads((tree / f"data/08_reporting/{env}/{name}.json").read_text("utf-8")))
            for tree in (old, new)
        )
        for key in sorted(left.keys() | right.keys()):
            if left.get(key) != right.get(key):
                lines.append(f"{name}: {key}: {left.get(key)!r} -> {right.get(key)!r}")
    return lines


def compare(old: Path, new: Path, env: str) -> dict[str, bool]:
    """Return for everything that must be equal whether it is."""
    equal = {}
    for pattern in EQUAL_BYTES:
        name = pattern.format(env=env)
        equal[name] = filecmp.cmp(old / "data" / name, new / "data" / name, shallow=False)
    equal[f"losses of {env}"] = losses(old, env) == losses(new, env)
    return equal


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="9415aa9", help="the commit to compare with")
    parser.add_argument("--new", default="HEAD")
    parser.add_argument("--env", action="append", choices=["test", "demo"], required=True)
    parser.add_argument("--folder", type=Path, help="keeps worktrees and finished runs")
    parser.add_argument("--report-lines", type=int, default=40, help="differing keys printed")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="compare-outputs-"))
    trees = [check_out(revision, folder) for revision in (options.old, options.new)]
    equal: dict[str, bool] = {}
    for env in options.env:
        for tree in trees:
            run(tree, env)
        equal |= compare(*trees, env)
        changed = differences_of_reports(*trees, env)
        for line in changed[: options.report_lines]:
            print(f"  {line}"[:160])
        print(f"  {len(changed)} keys of reports differ in {env}")
    for name, is_equal in equal.items():
        print(f"{'equal    ' if is_equal else 'DIFFERENT'} {name}")
    print(json.dumps({"old": trees[0].name, "new": trees[1].name, "equal": equal}))
    if options.folder is None:
        for tree in trees:
            _git("worktree", "remove", "--force", str(tree))
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
