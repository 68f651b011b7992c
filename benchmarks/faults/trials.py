"""The plan: which run a trial kills, how, and at which moment; all of it follows from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

PIPELINES = (
    *("__default__", "data_filtering", "quantization", "sft"),
    *("rag_index", "inference", "reporting", "export"),
)
RUNNERS = ("SequentialRunner", "CudaRunner")
CELLS = [(pipeline, runner) for pipeline in PIPELINES for runner in RUNNERS]
# pipelines with nodes that CudaRunner runs in processes of their own
IN_PROCESSES = {"__default__", "quantization", "sft", "inference"}
AIMED = ("write", "before_rename", "after_rename")
# a parameter of each pipeline that changes its outputs; a resume with it must not keep old ones
CHANGES = {
    "__default__": "sft.training.learning_rate=0.05",
    "data_filtering": "data_filtering.language_percent_min=100",
    "quantization": "quantization.double_quantization=false",
    "sft": "sft.training.learning_rate=0.05",
    "rag_index": "rag_index.max_document_tokens=32",
    "inference": "inference.max_new_tokens=4",
}


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        kind: ``uniform``: after a share of the undisturbed run's time; ``store``: while the
            tracking store is made; or one of ``AIMED``: while an output is saved.
        share: Of the time (``uniform``, ``store``), or of the file's bytes (``write``).
        place: Which of the pipeline's output files, as a share of their number.
    """

    kind: str
    share: float
    place: float


@dataclass(frozen=True)
class Trial:
    """One run, its kills, and how it goes on.

    Attributes:
        number: Together with the seed it names the trial.
        pipeline: The pipeline.
        runner: The runner's class.
        signal: ``KILL``, or ``INT`` (Ctrl-C) or ``TERM`` to the runner.
        victims: What is killed: ``all`` processes, the ``parent`` alone or one ``child``.
        moments: Of the first run and of the resumes that are killed, too.
        is_cold: The processes are started, not forked from one that has imported everything.
        has_store: The tracking store exists before the run.
        is_changed: The resume has other parameters than the run.
        waits: After ``parent`` the resume begins only when the orphans have ended.
        is_repeated: The command that resumed is run again, which must find nothing to do.
    """

    number: int
    pipeline: str
    runner: str
    signal: str
    victims: str
    moments: tuple[Moment, ...]
    is_cold: bool
    has_store: bool
    is_changed: bool
    waits: bool
    is_repeated: bool

    def describe(self) -> str:
        """Return the trial in one line."""
        moments = ", then ".join(
            f"{moment.kind} {moment.share:.3f} {moment.place:.3f}" for moment in self.moments
        )
        flags = [
            name
            for name, is_set in (
                ("cold", self.is_cold),
                ("existing store", self.has_store),
                ("other parameters", self.is_changed),
                ("waits for orphans", self.waits and self.victims == "parent"),
            )
            if is_set
        ]
        return ", ".join(
            [self.pipeline, self.runner, f"SIG{self.signal} to {self.victims}", moments, *flags]
        )


def plan(seed: int, number: int, *, cold_share: float = 0.05) -> Trial:
    """Return a trial; pipelines and runners take turns, the rest is drawn."""
    draw = random.Random(f"{seed}:{number}")
    pipeline, runner = CELLS[number % len(CELLS)]
    has_children = runner == "CudaRunner" and pipeline in IN_PROCESSES
    signal = draw.choices(("KILL", "INT", "TERM"), (8, 1, 1))[0]
    victims = "parent"
    if signal == "KILL":
        victims = draw.choices(
            ("all", "parent", "child"), (6, 2, 2) if has_children else (8, 2, 0)
        )[0]
    has_store = draw.random() < 0.5
    moments = [_moment(draw, signal, has_store=has_store)]
    while signal == "KILL" and len(moments) < 3 and draw.random() < 0.25:
        moments.append(_moment(draw, signal, has_store=True))
    return Trial(
        number=number,
        pipeline=pipeline,
        runner=runner,
        signal=signal,
        victims=victims,
        moments=tuple(moments),
        is_cold=draw.random() < cold_share,
        has_store=has_store,
        is_changed=draw.random() < 0.15 and pipeline in CHANGES,
        waits=draw.random() < 0.5,
        is_repeated=draw.random() < 0.25,
    )


def _moment(draw: random.Random, signal: str, *, has_store: bool) -> Moment:
    kind = "uniform"
    if signal == "KILL":
        kinds = ("uniform", *AIMED, "store")
        kind = draw.choices(kinds, (50, 20, 8, 8, 0 if has_store else 14))[0]
    return Moment(kind, draw.random(), draw.random())
