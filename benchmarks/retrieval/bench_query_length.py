r"""Which of RAGatouille's own few-shot examples each way of asking finds, and how long it takes.

    python benchmarks/retrieval/bench_query_length.py

The 100 tasks of ELYZA-tasks-100 search the 175 seed tasks for 20 examples, with the demo's encoder.
RAGatouille sets the length of queries by the longest text of a call, and the recipe calls it once
for each task: that is the reference. ``one call`` gives RAGatouille all tasks at once, ``product``
is what ``base`` does, and ``float16`` rounds as colbert-ai does on a GPU (autocast and embeddings
in float16, here on the CPU), with a call for each task.

``same lists`` counts the tasks with the reference's 20 examples in its order, ``same best`` those
with the same best one; ``in common`` is the mean of the examples that both have. Seconds are those
of encoding and searching for all tasks, without loading the encoder and encoding the pool. The
ratio is the seconds of the product over those of one call for all tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import read_configuration
from benchmarks.harness.recording import PROJECT, print_table, record
from ja_instruct.retrieval.colbert import encode_questions, search
from ja_instruct.retrieval.colbert_checkpoint import load_retriever, on_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = PROJECT.parent / "shared" / "data"
TOP_K = 20


def read_inputs(path: Path) -> list[str]:
    """Read the column ``input`` of a JSON Lines file."""
    return [json.loads(line)["input"] for line in path.read_text("utf-8").split("\n") if line]


@contextlib.contextmanager
def rounding_to_float16(checkpoint: Any) -> Iterator[None]:
    """Encode as colbert-ai does on a GPU: under autocast, and with embeddings in float16."""
    import torch

    doc = checkpoint.doc
    checkpoint.doc = lambda *args, **settings: doc(*args, **settings).half()
    with torch.autocast("cpu", torch.float16):
        yield
    del checkpoint.doc


def ask_ragatouille(
    retriever: Any, pool: list[str], calls: list[list[str]]
) -> tuple[list[list[int]], float]:
    """Return the positions that RAGatouille finds, in calls of several queries, and the seconds."""
    retriever.encode(pool, bsize=32, verbose=False)
    found = []
    start = time.perf_counter()
    for queries in calls:
        results = retriever.search_encoded_docs(queries, k=TOP_K)
        # a call with one query returns its list alone
        found += results if len(queries) > 1 else [results]
    seconds = time.perf_counter() - start
    retriever.clear_encoded_docs(force=True)
    return [[one["result_index"] for one in results] for results in found], seconds


def ask_product(
    directory: Path, pool: list[str], tasks: list[str]
) -> tuple[list[list[int]], float]:
    """Return the positions that the product finds, and the seconds without loading the encoder."""
    encoded = encode_questions(directory, pool)
    start = time.perf_counter()
    load_retriever(directory)
    loaded = time.perf_counter()
    found = search(directory, encoded, tasks, TOP_K)
    seconds = time.perf_counter() - loaded - (loaded - start)
    return [[result.position for result in results] for results in found], seconds


def compare(found: list[list[int]], reference: list[list[int]]) -> dict[str, float]:
    """Return how often lists are the reference's.

    >>> compare([[1, 2], [3, 4]], [[1, 2], [4, 5]])
    {'same_lists': 1, 'same_best': 1, 'in_common': 1.5}
    """
    pairs = list(zip(found, reference, strict=True))
    return {
        "same_lists": sum(one == other for one, other in pairs),
        "same_best": sum(one[0] == other[0] for one, other in pairs),
        "in_common": sum(len({*one} & {*other}) for one, other in pairs) / len(pairs),
    }


def main() -> None:
    """Ask in every way, print and keep the figures."""
    if not DATA.is_dir():
        sys.exit(f"{DATA} is missing: this benchmark needs its data sets beside the project")
    pool = read_inputs(DATA / "alpaca_jp_seed_tasks/qa.jsonl")
    tasks = read_inputs(DATA / "elyza_tasks_100/tasks.jsonl")
    os.chdir(PROJECT)  # the catalog's paths are relative to it
    entry = read_configuration("demo")["catalog"]["retriever_checkpoint"]
    directory = AbstractDataset.from_config("retriever_checkpoint", entry).load().directory
    retriever = load_retriever(directory)
    each = [[task] for task in tasks]
    with on_cpu():
        asked = {
            "a call for each task": ask_ragatouille(retriever, pool, each),
            "one call": ask_ragatouille(retriever, pool, [tasks]),
        }
        with rounding_to_float16(retriever.model.inference_ckpt):
            asked["float16"] = ask_ragatouille(retriever, pool, each)
    asked["product"] = ask_product(directory, pool, tasks)
    reference = asked["a call for each task"][0]
    rows = {
        name: {**compare(found, reference), "seconds": round(seconds, 2)}
        for name, (found, seconds) in asked.items()
    }
    # a CPU without units for float16 is slow
    del rows["float16"]["seconds"]
    columns = {"same lists": "same_lists", "same best": "same_best", "in common": "in_common"}
    print_table(rows, {**columns, "s": "seconds"}, f"{len(tasks)} tasks, {len(pool)} questions")
    ratio = rows["product"]["seconds"] / rows["one call"]["seconds"]
    record("query_length", {"ratio": round(ratio, 2), "rows": rows})


if __name__ == "__main__":
    main()
