"""The figures of ``bench_generation.py``: rates, seconds of the whole job, equal answers."""

from __future__ import annotations

from itertools import takewhile
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
        # the product's engine, which answers all tasks
        seconds, prefill = result["generate_seconds"], result.get("prefill_seconds")
        steps, batch_sizes = result["steps"], result["batch_sizes"]
        decode = None if prefill is None else seconds - prefill
        whole = tasks * new_tokens * seconds / figures["new_tokens"]
        figures["prepare_seconds"] = round(result["prepare_seconds"], 2)
    else:
        # the reference, which timed the tokens of some answers; the first comes from the prefill
        prefill = sum(one["prefill_seconds"] for one in answers)
        decode = sum(one["decode_seconds"] for one in answers)
        steps, batch_sizes = figures["new_tokens"] - len(answers), [1]
        whole = tasks * (prefill / len(answers) + (new_tokens - 1) * decode / max(steps, 1))
    return figures | {
        "prefill_seconds": None if prefill is None else round(prefill, 3),
        "decode_seconds": None if decode is None else round(decode, 3),
        "steps": steps,
        "step_ms": None if decode is None else round(1e3 * decode / max(steps, 1), 3),
        "batch_size": max(batch_sizes, default=None),
        "whole_job_seconds": round(whole, 1),
        "tokens_per_second": round(tasks * new_tokens / whole, 3),
    }


def compare_answers(ones: list[list[str]], others: list[list[str]]) -> dict[str, Any]:
    """Return the number of equal answers, and the share of tokens before a difference."""
    pairs = list(zip(ones, others, strict=True))
    same = (takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)) for pair in pairs)
    common = sum(1 for prefix in same for _ in prefix)
    return {
        "answers": len(ones),
        "equal_answers": sum(one == other for one, other in pairs),
        "share_of_tokens_before_a_difference": round(common / sum(map(len, ones)), 4),
    }


def add_ratios(sides: dict[str, dict[str, Any]]) -> None:
    """Add each side's rate over that of the original."""
    theirs = sides.get("original", {}).get("tokens_per_second")
    for row in sides.values():
        rate = row.get("tokens_per_second")
        row["ratio"] = round(rate / theirs, 2) if rate and theirs else None
