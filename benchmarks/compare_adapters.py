r"""The held-out loss of several adapters on the same samples: of the answers alone, and of all.

    python benchmarks/compare_adapters.py --model data/06_models/base/quantized_model \
        --samples data/05_model_input/base/eval_dataset.jsonl \
        --adapter base=data/06_models/base/adapter --adapter tuned=data/06_models/tuned/adapter

Runs that were trained with different losses log different held-out losses; here all are asked the
same. The samples, ``prompt`` and ``completion`` in JSON Lines, are what a run held out; those of
several runs are the same where filtered pairs, ``eval_fraction`` and seed were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recording import record


def mean_losses(model: Any, datasets: dict[str, Any]) -> dict[str, float]:
    """Return the mean loss over the labelled tokens of each dataset, in nats a token."""
    import torch

    found = {}
    for name, rows in datasets.items():
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            labels = torch.tensor(row["labels"][1:], device=model.device)
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
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
    parser.add_argument("--result", type=Path, help="where the figures go; default: results/")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    from peft import PeftModel

    from ja_instruct.datasets import JSONLinesDataset, QuantizedModelDataset
    from ja_instruct.devices import load_nf4_model
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
    losses = {"without adapter": mean_losses(base, datasets)}
    for pair in options.adapter:
        name, _, path = pair.partition("=")
        model = PeftModel.from_pretrained(base, path).eval()
        losses[name] = mean_losses(model, datasets)
        base = model.unload()
    for name, row in losses.items():
        print(f"{name:<20}" + "".join(f"{key}: {value:<10}" for key, value in row.items()))
    first, *others = (row["answers"] for row in list(losses.values())[1:] or losses.values())
    result = {
        "ratio": round(others[-1] / first, 4) if others else None,
        "samples": len(datasets["answers"]),
        "losses": losses,
    }
    if options.result:
        options.result.write_text(json.dumps(result), "utf-8")
    else:
        command = " ".join(["python benchmarks/compare_adapters.py", *sys.argv[1:]])
        record("adapters", result, command)


if __name__ == "__main__":
    main()
