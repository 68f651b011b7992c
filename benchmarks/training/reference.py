"""Training as the contest's notebook did it, with unsloth and TRL; and with TRL and PEFT alone.

``bench_training.py`` starts it. The first way is the recipe's to the letter: unsloth's model and
adapter, TRL's trainer on a column of texts, batches of 4 padded to their longest. The second has
the same arguments; transformers loads the model and PEFT makes the adapter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.random_models import load_nf4
from benchmarks.harness.sides import run_job, write_result

# newer unsloth would join the samples of a batch where the notebook's padded them
os.environ["UNSLOTH_DISABLE_AUTO_PADDING_FREE"] = "1"
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_SEQ_LENGTH = 2048
SEED = 3407
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA: dict[str, Any] = {
    "r": 64,
    "lora_alpha": 64,
    "lora_dropout": 0,
    "bias": "none",
    "use_rslora": False,
}
#: The recipe's arguments, except those for the length of the training and for its outputs.
ARGUMENTS: dict[str, Any] = {
    "dataset_text_field": "text",
    "dataset_num_proc": 2,
    "max_length": MAX_SEQ_LENGTH,
    "packing": False,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 300,
    "optim": "adamw_8bit",
    "weight_decay": 0.01,
    "bf16": True,
    "neftune_noise_alpha": 5,
    "auto_find_batch_size": True,
    "seed": SEED,
    "do_eval": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


def load_with_unsloth(model: str) -> tuple[Any, Any]:
    """Return model with adapter, and tokenizer."""
    from unsloth import FastLanguageModel

    base, tokenizer = FastLanguageModel.from_pretrained(
        model_name=model,
        max_seq_length=MAX_SEQ_LENGTH,
        dtype=None,
        load_in_4bit=True,
        local_files_only=True,
    )
    adapted = FastLanguageModel.get_peft_model(
        base,
        **LORA,
        target_modules=TARGET_MODULES,
        use_gradient_checkpointing="unsloth",
        random_state=SEED,
        loftq_config=None,
        max_seq_length=MAX_SEQ_LENGTH,
    )
    return adapted, tokenizer


def load_with_peft(model: str) -> tuple[Any, Any]:
    """Return model with adapter, and tokenizer; transformers chooses the attention."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    base, tokenizer = load_nf4(model)
    if torch.cuda.is_available():
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
    set_seed(SEED)
    lora = LoraConfig(**LORA, target_modules=TARGET_MODULES, task_type="CAUSAL_LM")
    return get_peft_model(base, lora), tokenizer


WAYS = {"unsloth": load_with_unsloth, "peft": load_with_peft}


class CountingCollator:
    """Wraps a trainer's collator and counts each micro-batch's tokens, without and with padding."""

    def __init__(self, collator: Any) -> None:
        """Wrap ``collator``."""
        self._collator = collator
        self.batches: list[tuple[int, int]] = []

    def __call__(self, examples: Any) -> Any:
        """Collate and count."""
        batch = self._collator(examples)
        real = sum(len(example["input_ids"]) for example in examples)
        self.batches.append((real, batch["input_ids"].numel()))
        return batch

    def by_step(self, accumulation: int, steps: int) -> tuple[list[int], list[int]]:
        """Return real and padded tokens per optimizer step; batches read ahead are left out."""
        per_step = [
            self.batches[step * accumulation : (step + 1) * accumulation] for step in range(steps)
        ]
        real, padded = ([sum(batch[i] for batch in step) for step in per_step] for i in (0, 1))
        return real, padded


def build_trainer(model: Any, tokenizer: Any, texts: list[str], changes: dict[str, Any]) -> Any:
    """Return TRL's trainer with the recipe's arguments."""
    import torch
    from datasets import Dataset

    # after unsloth was imported, which replaces both
    from trl import SFTConfig, SFTTrainer

    arguments = {**ARGUMENTS, **changes}
    trainer_class: Any = SFTTrainer
    if torch.cuda.is_available():
        arguments.setdefault("gradient_checkpointing", True)
    else:
        from transformers import Trainer

        # the loss of TRL's own is a Triton kernel
        trainer_class = type("PlainTrainer", (SFTTrainer,), {"compute_loss": Trainer.compute_loss})
        arguments |= {
            "use_cpu": True,
            "bf16": False,
            "optim": "adamw_torch",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        }
    return trainer_class(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        args=SFTConfig(**arguments),
    )


def train(job: dict[str, Any], path: Path) -> None:
    """Train on the job's samples and write the figures to ``path`` after each step."""
    if job["way"] == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    with PeakMemory() as memory:
        started = time.perf_counter()
        model, tokenizer = WAYS[job["way"]](job["model"])
        from benchmarks.training.step_clock import StepClock

        texts = [
            prompt + answer + (tokenizer.eos_token if answer else "")
            for prompt, answer in json.loads(Path(job["samples"]).read_text("utf-8"))
        ]
        changes = {
            "max_steps": job["steps"],
            "output_dir": job["folder"],
            **({"gradient_checkpointing": False} if job["way"] == "unsloth" else {}),
            **job["changes"],
        }
        model.config.use_cache = False
        trainer = build_trainer(model, tokenizer, texts, changes)
        counting = CountingCollator(trainer.data_collator)
        trainer.data_collator = counting
        result: dict[str, Any] = {"load_seconds": round(time.perf_counter() - started, 1)}

        def report() -> None:
            accumulation = trainer.args.gradient_accumulation_steps
            real, padded = counting.by_step(accumulation, len(clock.ends))
            result.update(
                step_seconds=clock.step_seconds(),
                losses=clock.losses,
                tokens=real,
                padded_tokens=padded,
                memory=memory.figures(),
            )
            write_result(path, result)

        clock = StepClock(report, counting.batches.clear)
        trainer.add_callback(clock)
        trainer.train()
        report()


if __name__ == "__main__":
    run_job(train)
