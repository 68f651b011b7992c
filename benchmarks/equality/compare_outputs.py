"""Compare the outputs of two commits: records byte for byte, losses and reports by value.

Runs the whole pipeline of both commits, each in a git worktree of its own with the same
interpreter, and compares what a user holds afterwards. Run it before and after a change that must
not alter results::

    python benchmarks/equality/compare_outputs.py --old 9415aa9 --new HEAD --env test --env demo

Pairs, prompts, answers, weights and the index' vectors must be equal to the byte, the history of
training but for its seconds: the results in the table of ``benchmarks/harness/outputs.py``. What
differs in the other files is printed for a person to judge (versions and renamed keys are
expected). The last line is JSON; the exit status is 1 if a result is not equal. With ``--folder``
the worktrees are kept and finished runs are reused. ``--env demo`` takes about 10 minutes a commit
on 2 cores and needs the extra ``demo``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.outputs import differences, output_files, rule_of
from benchmarks.harness.recording import PROJECT

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


def compare(old: Path, new: Path) -> tuple[dict[str, bool], dict[str, str]]:
    """Compare all outputs by the table of ``benchmarks/harness/outputs.py``.

    Returns:
        For each result whether it is equal, and what differs in the other outputs.
    """
    found = differences(old, new)
    results = {
        path: path not in found
        for path in sorted({*output_files(old), *output_files(new)})
        if (rule := rule_of(path)) is not None and rule.is_result
    }
    return results, {path: text for path, text in found.items() if path not in results}


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="9415aa9", help="the commit to compare with")
    parser.add_argument("--new", default="HEAD")
    parser.add_argument("--env", action="append", choices=["test", "demo"], required=True)
    parser.add_argument("--folder", type=Path, help="keeps worktrees and finished runs")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="compare-outputs-"))
    trees = [check_out(revision, folder) for revision in (options.old, options.new)]
    for env in options.env:
        for tree in trees:
            run(tree, env)
    equal, others = compare(*trees)
    for path, text in others.items():
        print(f"  {path}: {text}")
    for name, is_equal in equal.items():
        print(f"{'equal    ' if is_equal else 'DIFFERENT'} {name}")
    print(json.dumps({"old": trees[0].name, "new": trees[1].name, "equal": equal}))
    if options.folder is None:
        for tree in trees:
            _git("worktree", "remove", "--force", str(tree))
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
