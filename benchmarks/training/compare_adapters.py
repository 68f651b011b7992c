r"""The held-out loss of several adapters on the same samples: of the answers alone, and of all.

    python benchmarks/training/compare_adapters.py --model data/06_models/base/quantized_model \
        --samples data/05_model_input/base/eval_dataset.jsonl \
        --adapter base=data/06_models/base/adapter --adapter tuned=data/06_models/tuned/adapter

Runs that were trained with different losses log different held-out losses; here all are asked the
same. With ``--int8`` each is asked once more with keys and values in 8 bits, as the batched engine
has them with ``kv_cache_dtype: int8``. The samples, ``prompt`` and ``completion`` in JSON Lines,
are what a run held out; those of several runs are the same where filtered pairs, ``eval_fraction``
and seed were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import record
from benchmarks.training.rounded_cache import RoundedCache

if TYPE_CHECKING:
    from collections.abc import Callable


def mean_losses(
    model: Any, datasets: dict[str, Any], cache: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Return the mean loss over the labelled tokens of each dataset, in nats a token.

    Args:
        model: A language model.
        datasets: Samples with ``input_ids`` and ``labels``.
        cache: Makes what keys and values pass through; None leaves them as they are.
    """
    import torch

    found = {}
    for name, rows in datasets.items():
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            labels = torch.tensor(row["labels"][1:], device=model.device)
            with torch.no_grad():
                given = {"past_key_values": cache()} if cache else {"use_cache": False}
                logits = model(input_ids=ids, **given).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
        found[name] = round(total / count, 4)
    return found


def main() -> None:
    """Compare, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="4-bit directory")
    parser.add_argument("--samples", type=Path, required=True, help="eval_dataset.jsonl of a run")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--int8", action="store_true", help="also with keys and values in 8 bits")
    parser.add_argument("--result", type=Path, help="where the figures go; default: results/")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    from peft import PeftModel

    from ja_instruct.datasets import JSONLinesDataset, QuantizedModelDataset
    from ja_instruct.models.loading import load_nf4_model
    from ja_instruct.pipelines.sft.samples import encode_dataset

    directory = QuantizedModelDataset(filepath=options.model).load()
    samples = JSONLinesDataset(filepath=options.samples).load()
    tokenizer = directory.load_tokenizer()
    datasets = {
        name: encode_dataset(samples, tokenizer, options.max_length, answers_only, "drop")[0]
        for name, answers_only in (("answers", True), ("questions and answers", False))
    }
    base: Any = load_nf4_model(directory, options.device)
    base.eval()
    losses: dict[str, dict[str, float]] = {}

    def measure(name: str, model: Any) -> None:
        losses[name] = mean_losses(model, datasets)
        if options.int8:
            losses[f"{name}, int8"] = mean_losses(model, datasets, RoundedCache)

    measure("without adapter", base)
    for pair in options.adapter:
        name, _, path = pair.partition("=")
        model = PeftModel.from_pretrained(base, path).eval()
        measure(name, model)
        base = model.unload()
    for name, row in losses.items():
        print(f"{name:<24}" + "".join(f"{key}: {value:<10}" for key, value in row.items()))
    adapters = [pair.partition("=")[0] for pair in options.adapter]
    first, *others = (losses[name]["answers"] for name in adapters or losses)
    result = {
        "ratio": round(others[-1] / first, 4) if others else None,
        "samples": len(datasets["answers"]),
        "losses": losses,
    }
    if options.result:
        options.result.write_text(json.dumps(result), "utf-8")
    else:
        record("adapters", result)


if __name__ == "__main__":
    main()
