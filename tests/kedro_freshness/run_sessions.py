"""Runs several sessions of a project in one process, as a notebook does.

``python run_sessions.py RUNS``: a JSON list of runs; prints a JSON line for each.
"""

import json
import sys
from pathlib import Path

from click.testing import CliRunner
from kedro.framework.session import KedroServiceSession, KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

from kedro_freshness.status import status

RUNNERS = {one.__name__: one for one in (ParallelRunner, SequentialRunner, ThreadRunner)}


def outputs():
    """Return the inode of each output: each save makes another file."""
    files = (path for path in Path("data").iterdir() if path.is_file())
    return {path.stem: path.stat().st_ctime_ns for path in files}


def main(runs):
    project = Path.cwd()
    bootstrap_project(project)
    service = KedroServiceSession.create(project_path=project)
    for run in runs:
        runner = RUNNERS[run.pop("runner", "SequentialRunner")](is_async=run.pop("is_async", False))
        before = outputs()
        params = run.pop("params", {})
        if run.pop("is_service", False):
            service.run(runner=runner, runtime_params=params, **run)
        else:
            with KedroSession.create(
                project, env=run.pop("env", None), runtime_params=params
            ) as session:
                session.run(runner=runner, **run)
        made = [name for name, time in outputs().items() if before.get(name) != time]
        print("RUN", json.dumps(sorted(made)), flush=True)
    print("STATUS", json.dumps(CliRunner().invoke(status, []).output))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
