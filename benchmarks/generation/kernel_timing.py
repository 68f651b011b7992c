"""How ``bench_generation_kernels.py`` times a kernel, and how it tells that the result is right."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Call = Callable[[], Any]
Clock = Callable[[Sequence[Call]], float]

SAMPLES = 5
#: Of a graph, one after the other, in each sample.
REPLAYS = 4


def graph_clock(calls_at_least: int) -> Clock:
    """Return a clock whose graphs hold that many calls: more, the shorter a call is."""
    return partial(graph_microseconds, calls_at_least=calls_at_least)


def graph_microseconds(calls: Sequence[Call], calls_at_least: int) -> float:
    """Return the microseconds that the GPU takes for a call, the median of some samples.

    All calls are recorded once, as a step of generation is, so neither Python nor launching counts.

    Args:
        calls: That do the same, each with numbers of its own so that no cache helps.
        calls_at_least: Of a graph; it takes them in turn.
    """
    for call in calls:
        # what compiles or chooses an algorithm does so here
        call()
    torch.cuda.synchronize()
    turns = -(-calls_at_least // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(turns):
            for call in calls:
                call()
    samples = []
    for _ in range(SAMPLES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # the next ones are launched while this one runs
        graph.replay()
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end))
    # what a graph has allocated is of no use to others until it is given back
    del graph
    torch.cuda.empty_cache()
    return 1e3 * statistics.median(samples) / (REPLAYS * turns * len(calls))


@contextmanager
def poisoned() -> Iterator[None]:
    """Make new memory hold NaN, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def relative_error(output: Any, exact: Any) -> float:
    """Return the root of the mean square difference over that of the exact numbers.

    Args:
        output: A tensor, or a tuple of some.
        exact: Likewise, of the same shapes.

    Raises:
        ValueError: The shapes differ, or an output is not finite.
    """
    ours, theirs = _tensors(output), _tensors(exact)
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the output's shapes are {shapes[0]}, not {shapes[1]}")
    ours, theirs = (torch.cat([one.double().flatten() for one in side]) for side in (ours, theirs))
    if not bool(ours.isfinite().all()):
        raise ValueError("the output has numbers that are not finite: not all of it is written")
    return float((ours - theirs).norm() / theirs.norm())


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def compare(ours: Call, theirs: Call, exact: Call, clock: Clock) -> dict[str, float]:
    """Return both ways' microseconds and errors, and how many times as fast ours is."""
    wanted = exact()
    with poisoned():
        result = ours()
    row = {
        "ours_error": relative_error(result, wanted),
        "theirs_error": relative_error(theirs(), wanted),
    }
    del wanted, result
    row |= {"ours_us": clock([ours]), "theirs_us": clock([theirs])}
    return {**row, "ratio": row["theirs_us"] / row["ours_us"]}
