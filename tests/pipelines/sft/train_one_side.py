"""Train on the tiny model with one backend, in a process of its own: ``train_one_side.py JOB``."""

import json
import random
import sys
from pathlib import Path

from ja_instruct.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS


def main():
    job = json.loads(sys.argv[1])
    if job["backend"] == "unsloth":
        import unsloth  # noqa: F401  # before transformers and trl, which it patches
    from datasets import Dataset

    from ja_instruct.datasets import QuantizedModelDataset
    from ja_instruct.pipelines.sft.nodes import train
    from ja_instruct.pipelines.sft.parameters import SftParameters

    configuration = str(Path(__file__).parents[3] / "conf")
    loader = CONFIG_LOADER_CLASS(configuration, env="test", **CONFIG_LOADER_ARGS)
    section = loader["parameters"]["sft"]
    section |= {
        "backend": job["backend"],
        "device": "cuda",
        "checkpoint_dir": "checkpoints",
        "max_seq_length": 512,
    }
    section["training"] |= {
        "report_to": [],
        "save_strategy": "no",
        "neftune_noise_alpha": None,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": job["steps"],
        "learning_rate": 0.02,
        "warmup_steps": 0,
        "bf16": True,
        "optim": "adamw_8bit",
        "gradient_checkpointing": True,
        "logging_steps": 1,
        **job["training"],
    }
    chance = random.Random(0)
    rows = [
        {
            "prompt": "質問:" + "日本の首都はどこですか。" * chance.randint(1, 8),
            "completion": "東京です。" * chance.randint(1, 40),
            "source": "filtered_pairs",
        }
        for _ in range(40)
    ]
    model = QuantizedModelDataset(filepath=job["model"]).load()
    _, metrics, history = train(
        model, Dataset.from_list(rows), Dataset.from_list(rows[:6]), SftParameters(**section)
    )
    result = {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "held_out": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "summary": metrics["summary"],
    }
    Path(job["result"]).write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
