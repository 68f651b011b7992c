"""What the sides of ``bench_generation.py`` come to: rates, times of the whole job, a table."""

from __future__ import annotations

from typing import Any

from benchmarks.generation.memory_traffic import bytes_to_read


def summarize(result: dict[str, Any], tasks: int, new_tokens: int) -> dict[str, Any]:
    """Return a side's figures.

    Args:
        result: What its process has written.
        tasks: Of the whole job.
        new_tokens: Of each answer of the whole job.
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
        return figures | _measure_steps(result, answers, tasks, new_tokens)
    return figures | _extrapolate(answers, tasks, new_tokens)


def _extrapolate(answers: list[dict[str, Any]], tasks: int, new_tokens: int) -> dict[str, Any]:
    """Return the figures of a loop in which each token was timed, as those of the whole job."""
    reading = sum(one["prefill_seconds"] for one in answers)
    decoding = sum(one["decode_seconds"] for one in answers)
    # the first token of an answer comes of reading the prompt
    steps = sum(one["new_tokens"] - 1 for one in answers)
    step = decoding / max(steps, 1)
    seconds = tasks * (reading / len(answers) + (new_tokens - 1) * step)
    return {
        "reading_seconds": round(reading, 3),
        "decode_seconds": round(decoding, 3),
        "steps": steps,
        "step_ms": round(1e3 * step, 3),
        "sequences": 1,
        "whole_job_seconds": round(seconds, 1),
        "tokens_per_second": round(tasks * new_tokens / seconds, 3),
    }


def _measure_steps(
    result: dict[str, Any], answers: list[dict[str, Any]], tasks: int, new_tokens: int
) -> dict[str, Any]:
    """Return the figures of an engine that was watched while it answered."""
    generated = sum(one["new_tokens"] for one in answers)
    seconds, reading = result["generate_seconds"], result.get("reading_seconds")
    rate = generated / seconds
    figures: dict[str, Any] = {
        "preparing_seconds": round(result["preparing_seconds"], 2),
        "generate_seconds": round(seconds, 2),
        "steps": result["steps"],
        "sequences": max(result["step_sizes"], default=None),
        "sequences_tried": result["step_sizes"],
        "whole_job_seconds": round(tasks * new_tokens / rate, 1),
        "tokens_per_second": round(rate, 3),
    }
    if reading is None:
        # stopped before its end
        return figures
    decoding = seconds - reading
    figures |= {
        "reading_seconds": round(reading, 3),
        "decode_seconds": round(decoding, 3),
        "step_ms": round(1e3 * decoding / max(result["steps"], 1), 3),
        "reading_tokens_per_second": round(
            sum(one["prompt_tokens"] for one in answers) / max(reading, 1e-9), 1
        ),
    }
    return figures | _find_limit(result, answers, decoding)


def _find_limit(
    result: dict[str, Any], answers: list[dict[str, Any]], decoding: float
) -> dict[str, Any]:
    lengths = [(one["prompt_tokens"], one["new_tokens"]) for one in answers]
    steps, bandwidth = max(result["steps"], 1), result["bandwidth"]
    weights, cache = bytes_to_read(
        lengths, steps, result["weight_bytes"], result["cache_bytes_per_token"]
    )
    limit = (weights + cache) / bandwidth
    return {
        "bandwidth_gb_per_second": round(bandwidth / 1e9, 1),
        "weights_gb": round(result["weight_bytes"] / 1e9, 3),
        "cache_gb_read_a_step": round(cache / steps / 1e9, 3),
        "limit_step_ms": round(1e3 * limit / steps, 3),
        "share_of_limit": round(limit / decoding, 3),
    }


def add_ratios(sides: dict[str, dict[str, Any]]) -> None:
    """Add each side's rate over the original's, and over the product's one by one."""
    for key, other in (("ratio", "original"), ("ratio_to_one_by_one", "one-by-one")):
        theirs = sides.get(other, {}).get("tokens_per_second")
        for row in sides.values():
            rate = row.get("tokens_per_second")
            row[key] = round(rate / theirs, 2) if rate and theirs else None


COLUMNS = {
    "tokens/s": "tokens_per_second",
    "ratio": "ratio",
    "job s": "whole_job_seconds",
    "load s": "load_seconds",
    "prepare": "preparing_seconds",
    "read s": "reading_seconds",
    "step ms": "step_ms",
    "limit ms": "limit_step_ms",
    "share": "share_of_limit",
    "at a time": "sequences",
}
MEMORY_COLUMNS = {"GB": "torch_allocated_gb", "kept": "torch_reserved_gb", "NVML": "nvml_device_gb"}


def print_table(sides: dict[str, dict[str, Any]]) -> None:
    """Print the sides for people."""
    print(f"\n{'':<16}" + "".join(f"{column:>11}" for column in (*COLUMNS, *MEMORY_COLUMNS)))
    for name, row in sides.items():
        cells = [row.get(key) for key in COLUMNS.values()]
        cells += [row["memory"].get(key) for key in MEMORY_COLUMNS.values()]
        shown = "".join(f"{'-' if cell is None else cell:>11}" for cell in cells)
        done = row["status"] == "done" and not row["errors"]
        print(f"{name:<16}{shown}" + ("" if done else f"  {row['status']} {row['errors'][:1]}"))
