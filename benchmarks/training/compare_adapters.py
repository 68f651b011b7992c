r"""The held-out loss of several adapters on the same samples: of the answers, and of all tokens.

    python benchmarks/training/compare_adapters.py \
        --model data/06_models/base/quantized_model \
        --samples data/05_model_input/base/eval_dataset.jsonl \
        --adapter base=data/06_models/base/adapter --adapter tuned=data/06_models/tuned/adapter

Runs with different training losses log different held-out losses; here all adapters get the same
one. With ``--int8`` each is measured again with the int8 KV cache of ``kv_cache_dtype: int8``. The
samples are the held-out set of one run, ``prompt`` and ``completion`` in JSON Lines; runs with the
same filtered pairs, ``eval_fraction`` and seed have the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record

if TYPE_CHECKING:
    from collections.abc import Callable


class RoundedCache(transformers.DynamicCache):
    """transformers' cache with the rounding of the int8 KV cache; head size: a power of 2."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Round the rotated keys and the values; rotate the keys back."""
        from ja_instruct.engine.kernels.int8_kv import (
            hadamard_matrix,
            hadamard_rotate,
            quantize_int8,
        )

        dtype, width = key_states.dtype, key_states.shape[-1]
        rounded = quantize_int8(hadamard_rotate(key_states)).dequantize(dtype)
        back = hadamard_matrix(width, dtype, rounded.device).T * width**-0.5
        values = quantize_int8(value_states).dequantize(dtype)
        return super().update(rounded @ back, values, *args, **kwargs)


def mean_losses(
    model: Any, datasets: dict[str, Any], cache: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Return the mean loss of each dataset's labelled tokens; ``cache`` makes a KV cache."""
    import torch

    found = {}
    for name, rows in datasets.items():
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            labels = torch.tensor(row["labels"][1:], device=model.device)
            with torch.no_grad():
                settings = {"past_key_values": cache()} if cache else {"use_cache": False}
                logits = model(input_ids=ids, **settings).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
        found[name] = round(total / count, 4)
    return found


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, float]], int]:
    """Return the losses without and with each adapter, and the number of samples."""
    from peft import PeftModel

    from ja_instruct.datasets import JSONLinesDataset, QuantizedModelDataset
    from ja_instruct.models.loading import load_nf4_model
    from ja_instruct.pipelines.sft.samples import encode_dataset

    directory = QuantizedModelDataset(filepath=options.model).load()
    samples = JSONLinesDataset(filepath=options.samples).load()
    tokenizer = directory.load_tokenizer()
    datasets = {
        name: encode_dataset(samples, tokenizer, options.max_length, completion_only, "drop")[0]
        for name, completion_only in (("answers", True), ("questions and answers", False))
    }
    base: Any = load_nf4_model(directory, options.device)
    losses: dict[str, dict[str, float]] = {}
    for name, path in {"without adapter": None, **options.adapters}.items():
        model = (PeftModel.from_pretrained(base, path) if path else base).eval()
        losses[name] = mean_losses(model, datasets)
        if options.int8:
            losses[f"{name}, int8"] = mean_losses(model, datasets, RoundedCache)
        base = model.unload() if path else base
    return losses, len(datasets["answers"])


def main() -> None:
    """Compare, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="4-bit directory")
    parser.add_argument("--samples", type=Path, required=True, help="eval_dataset.jsonl of a run")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--int8", action="store_true", help="also with the int8 KV cache")
    parser.add_argument("--result", type=Path, help="output file; default: results/adapters.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    options.adapters = dict(pair.split("=", 1) for pair in options.adapter)
    losses, samples = measure(options)
    print_table(losses, {name: name for name in next(iter(losses.values()))}, "nats a token")
    first, *others = (losses[name]["answers"] for name in options.adapters or losses)
    result = {
        "ratio": round(others[-1] / first, 4) if others else None,
        "samples": samples,
        "losses": losses,
    }
    if options.result:
        options.result.write_text(json.dumps(result), "utf-8")
    record("adapters", result, keep=options.result is None)


if __name__ == "__main__":
    main()
