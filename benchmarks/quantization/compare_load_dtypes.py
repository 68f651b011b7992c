"""What the type changes in which weights are read before they are quantized to NF4.

    python benchmarks/quantization/compare_load_dtypes.py

The demo's model is written as float32 (its dequantized GGUF; gemma-2-27b is published in that type)
and as bfloat16. Each is quantized by the product with ``quantization.load_dtype`` float16, bfloat16
and float32, and predicts the same texts in float32 arithmetic. *codes* and *scales* are the 4-bit
codes and the 8-bit block scales that differ from those of float32; *nats more* is the mean
difference of a text, in nats per token, from float32, with its standard error. ``ratio`` is the
perplexity of float16, the recipe's, over that of float32.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import read_configuration
from benchmarks.harness.recording import PROJECT, print_table, record
from ja_instruct.datasets import QuantizedModelDataset
from ja_instruct.demo.gguf_model_dataset import (
    assemble_gguf,
    read_gemma_tokenizer,
    read_gguf_model,
)
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.models.safetensors import packed_matrices, read_headers
from ja_instruct.pipelines.quantization.nodes import quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.quantization.perplexity import Sample, make_samples, score
from ja_instruct.pipelines.quantization.weight_errors import relative_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = ("float32", "bfloat16")
LOAD_DTYPES = ("float32", "float16", "bfloat16")
COLUMNS = {
    "codes, %": "codes_percent:.3f",
    "scales, %": "scales_percent:.3f",
    "error": "relative_error:.6f",
    "perplexity": "perplexity:.4f",
    "nats more": "nats_more:+.5f",
    "±": "standard_error:.5f",
}


def write_sources(folder: Path) -> dict[str, ModelDirectory]:
    """Write the demo's model in each type of ``SOURCES``."""
    from gguf import GGUFReader

    source = read_configuration("demo")["catalog"]["base_model"]
    gguf = assemble_gguf(source["package"], source["sha256"], folder / "model.gguf")
    tokenizer = read_gemma_tokenizer(GGUFReader(gguf))
    for dtype in SOURCES:
        read_gguf_model(gguf, dtype).save_pretrained(folder / dtype)
        tokenizer.save_pretrained(folder / dtype)
    return {dtype: ModelDirectory(folder / dtype, source["model_id"]) for dtype in SOURCES}


def quantize_from(model: ModelDirectory, load_dtype: str, folder: Path) -> ModelDirectory:
    """Quantize a model by the demo's parameters with another ``load_dtype``."""
    section = read_configuration("demo")["parameters"]["quantization"]
    dataset = QuantizedModelDataset(filepath=folder / f"{model.path.name} by {load_dtype}")
    dataset.save(quantize(model, QuantizationParameters(**{**section, "load_dtype": load_dtype})))
    return dataset.load()


def nats_of(model: ModelDirectory, samples: Sequence[Sample]) -> list[float]:
    """Return the nats a token of each text."""
    loaded = load_nf4_model(model, "cpu").eval()
    loaded.set_attn_implementation("eager")
    scores = [score(loaded, [sample], model.path.name) for sample in samples]
    return [one.nats / one.tokens for one in scores]


def differing_percent(model: ModelDirectory, reference: ModelDirectory) -> dict[str, float]:
    """Return the share of 4-bit codes and of 8-bit scales that differ."""
    ours, theirs = read_headers(model.path), read_headers(reference.path)
    packed = list(packed_matrices(ours))
    counts = {"codes": [0, 0], "scales": [0, 0]}
    for name in packed:
        changed = ours[name].load() ^ theirs[name].load()
        counts["codes"][0] += int((changed >> 4).count_nonzero() + (changed & 15).count_nonzero())
        counts["codes"][1] += 2 * changed.numel()
        scales = ours[f"{name}.absmax"].load() != theirs[f"{name}.absmax"].load()
        counts["scales"][0] += int(scales.sum())
        counts["scales"][1] += scales.numel()
    return {f"{kind}_percent": 100 * some / total for kind, (some, total) in counts.items()}


def compare(model: ModelDirectory, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Return the figures of each ``load_dtype``."""
    quantized = {dtype: quantize_from(model, dtype, folder) for dtype in LOAD_DTYPES}
    reference = quantized[LOAD_DTYPES[0]]
    nats_by_text = {dtype: nats_of(directory, samples) for dtype, directory in quantized.items()}
    expected = nats_by_text[LOAD_DTYPES[0]]
    rows = {}
    for dtype, directory in quantized.items():
        found = nats_by_text[dtype]
        more = [one - other for one, other in zip(found, expected, strict=True)]
        tokens = [len(sample.ids) - 1 for sample in samples]
        nats = sum(one * count for one, count in zip(found, tokens, strict=True)) / sum(tokens)
        errors = relative_errors(model.path, directory.path, "cpu").values()
        rows[dtype] = {
            **differing_percent(directory, reference),
            "relative_error": statistics.mean(errors),
            "perplexity": math.exp(nats),
            "nats_more": statistics.mean(more),
            "standard_error": statistics.stdev(more) / math.sqrt(len(more)),
        }
    return rows


def main() -> None:
    """Quantize, compare, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000, help="predicted at most")
    options = parser.parse_args()
    lines = (PROJECT / "data/01_raw/perplexity_texts.jsonl").read_text("utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line]
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder))
        samples = make_samples(next(iter(sources.values())).load_tokenizer(), texts, options.tokens)
        results = {name: compare(one, samples, Path(folder)) for name, one in sources.items()}
    rows = {
        f"{source}, read in {dtype}": row
        for source, found in results.items()
        for dtype, row in found.items()
    }
    print_table(rows, COLUMNS)
    ratio = rows["float32, read in float16"]["perplexity"]
    ratio /= rows["float32, read in float32"]["perplexity"]
    tokens = sum(len(sample.ids) - 1 for sample in samples)
    record(
        "load_dtypes",
        {"ratio": round(ratio, 5), "texts": len(samples), "tokens": tokens, "results": results},
        keep=options.tokens >= 20_000,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
