"""The figures of ``bench_generation.py``: rates, seconds of the whole job, equal answers."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "tokens/s": "tokens_per_second",
    "ratio": "ratio",
    "job s": "whole_job_seconds",
    "load s": "load_seconds",
    "prepare s": "prepare_seconds",
    "prefill s": "prefill_seconds",
    "step ms": "step_ms",
    "batch": "batch_size",
    "allocated GB": "memory.torch_allocated_gb",
    "reserved GB": "memory.torch_reserved_gb",
    "NVML GB": "memory.nvml_device_gb",
    "status": "status",
}


def summarize(result: dict[str, Any], tasks: int, new_tokens: int) -> dict[str, Any]:
    """Return a side's figures.

    Args:
        result: Written by the side's process.
        tasks: Number of tasks in the whole job.
        new_tokens: Length of each answer in the whole job.
    """
    answers = [one for one in result.get("answers", []) if not one.get("error")]
    figures: dict[str, Any] = {
        "status": result["status"],
        "answers": len(answers),
        "errors": [one["error"] for one in result.get("answers", []) if one.get("error")],
        "prompt_tokens": sum(one["prompt_tokens"] for one in answers),
        "new_tokens": sum(one["new_tokens"] for one in answers),
        "load_seconds": result.get("load_seconds"),
        "memory": result.get("memory", {}),
        "parameters": result.get("parameters"),
    }
    if not answers:
        return figures
    if "generate_seconds" in result:
        return figures | _measured(result, answers, tasks, new_tokens)
    return figures | _extrapolated(answers, tasks, new_tokens)


def _extrapolated(answers: list[dict[str, Any]], tasks: int, new_tokens: int) -> dict[str, Any]:
    """Return the figures of the reference, which timed each token of some answers."""
    prefill = sum(one["prefill_seconds"] for one in answers)
    decode = sum(one["decode_seconds"] for one in answers)
    # the first token of an answer comes from the prefill
    steps = sum(one["new_tokens"] - 1 for one in answers)
    step = decode / max(steps, 1)
    seconds = tasks * (prefill / len(answers) + (new_tokens - 1) * step)
    return {
        "prefill_seconds": round(prefill, 3),
        "decode_seconds": round(decode, 3),
        "steps": steps,
        "step_ms": round(1e3 * step, 3),
        "batch_size": 1,
        "whole_job_seconds": round(seconds, 1),
        "tokens_per_second": round(tasks * new_tokens / seconds, 3),
    }


def _measured(
    result: dict[str, Any], answers: list[dict[str, Any]], tasks: int, new_tokens: int
) -> dict[str, Any]:
    """Return the figures of the product's engine."""
    seconds, prefill = result["generate_seconds"], result.get("prefill_seconds")
    rate = sum(one["new_tokens"] for one in answers) / seconds
    figures: dict[str, Any] = {
        "prepare_seconds": round(result["prepare_seconds"], 2),
        "generate_seconds": round(seconds, 2),
        "steps": result["steps"],
        "batch_size": max(result["batch_sizes"], default=None),
        "whole_job_seconds": round(tasks * new_tokens / rate, 1),
        "tokens_per_second": round(rate, 3),
    }
    if prefill is None:  # stopped before its end
        return figures
    decode = seconds - prefill
    return figures | {
        "prefill_seconds": round(prefill, 3),
        "decode_seconds": round(decode, 3),
        "step_ms": round(1e3 * decode / max(result["steps"], 1), 3),
    }


def first_difference(one: list[str], other: list[str]) -> int | None:
    """Return the index of the first token that differs; None for equal answers."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def compare_answers(ones: list[list[str]], others: list[list[str]]) -> dict[str, Any]:
    """Return the number of equal answers, and the share of tokens before a difference."""
    places = [first_difference(one, other) for one, other in zip(ones, others, strict=True)]
    before = sum(
        len(one) if place is None else place for one, place in zip(ones, places, strict=True)
    )
    return {
        "answers": len(ones),
        "equal_answers": places.count(None),
        "share_of_tokens_before_a_difference": round(before / sum(map(len, ones)), 4),
        "first_differences": places,
    }


def add_ratios(sides: dict[str, dict[str, Any]]) -> None:
    """Add each side's rate over that of the original."""
    theirs = sides.get("original", {}).get("tokens_per_second")
    for row in sides.values():
        rate = row.get("tokens_per_second")
        row["ratio"] = round(rate / theirs, 2) if rate and theirs else None
