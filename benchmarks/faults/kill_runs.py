"""Kill runs of ``--env=test`` at random moments, resume them, and compare their outputs.

    python benchmarks/faults/kill_runs.py [--trials 240] [--seed 16]
    python benchmarks/faults/kill_runs.py --seed 16 --trial 37 --keep /tmp/trial

Each trial runs a pipeline, alone or all of them chained, in a small project of its own under
SequentialRunner or CudaRunner (on two fake devices). It kills all processes of the run, the runner
alone, or the process of one node, after a share of the run's time, while a chosen output is
written or renamed, or while the tracking store is made; or it stops the run as Ctrl-C or ``kill``
does. Then it resumes with ``--only-missing-outputs``, some trials with other parameters, and some
resumes are killed, too. Every output is compared with that of an undisturbed run
(``benchmarks/harness/outputs.py``).

Most processes are forked from one that has imported everything; ``--cold-share`` are started as a
user starts them. A trial is repeated with its seed and number; aimed moments come back exactly,
the others as exactly as the machine's speed. The last line is JSON, the exit status 1 if a trial
could not be resumed or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults.processes import WarmServer
from benchmarks.faults.references import References
from benchmarks.faults.table import print_cells, summarize
from benchmarks.faults.trial import Result, run_trial
from benchmarks.faults.trials import plan
from benchmarks.harness.recording import record


def main() -> None:
    """Run the trials, print each and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--trial", type=int, nargs="+", help="run these trials alone")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--cold-share", type=float, default=0.05)
    parser.add_argument("--minutes", type=float, help="start no trial after so long")
    parser.add_argument("--keep", type=Path, help="keeps projects and logs of bad trials")
    parser.add_argument("--no-record", action="store_true", help="leaves results/ as it is")
    options = parser.parse_args()
    numbers = options.trial or range(options.first, options.first + options.trials)
    results: list[Result] = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))).resolve()
        trials = [plan(options.seed, one, cold_share=options.cold_share) for one in numbers]
        references = References(folder, {(one.pipeline, one.runner) for one in trials})
        print(f"undisturbed runs: {time.monotonic() - started:.0f} s", flush=True)
        server = stack.enter_context(WarmServer(folder, references.base, hash_seed=2))
        for trial in trials:
            if options.minutes and time.monotonic() - started > options.minutes * 60:
                break
            result = run_trial(trial, references, server)
            results.append(result)
            print(result.describe(), flush=True)
            if options.keep is not None and (result.is_bad or options.trial):
                kept = options.keep / f"{options.seed}-{trial.number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(references.work, kept, symlinks=True)
    print_cells(results)
    summary = summarize(results, seed=options.seed)
    record("faults", summary, keep=not (options.no_record or options.trial))
    sys.exit(1 if any(result.is_bad for result in results) else 0)


if __name__ == "__main__":
    main()
