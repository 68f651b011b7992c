"""The recipe in the code of its libraries, as one writes it in a notebook.

It shares no code with the product. Each function is one stage, and takes the texts and the models
that it works on; the recipe's figures stand here. Not on a CPU: unsloth, 8-bit AdamW and bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SEED = 3407
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHOTS = 20


def training_arguments(output_dir: Path, **changes: Any) -> Any:
    """Return TRL's arguments of the recipe."""
    from trl import SFTConfig

    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_length": 2048,
        "packing": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 2,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 300,
        "optim": "adamw_8bit",
        "weight_decay": 0.01,
        "bf16": True,
        "neftune_noise_alpha": 5,
        "auto_find_batch_size": True,
        "save_strategy": "steps",
        "save_steps": 300,
        "save_total_limit": 10,
        "logging_steps": 5,
        "seed": SEED,
        # unsloth's own is in the adapter
        "gradient_checkpointing": False,
    }
    return SFTConfig(**arguments | changes)


def quantize(base_model: Path, target: Path, chat_template: str) -> None:
    """Load in 4 bits without a dtype, which was float16 then, and save with the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        base_model,
        dtype=torch.float16,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(base_model)
    tokenizer.chat_template = chat_template
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def load(quantized_model: Path) -> tuple[Any, Any]:
    """Return the 4-bit model, dequantized, with the attention of Gemma 2, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        quantized_model, dtype=torch.float32, device_map="cpu", attn_implementation="eager"
    )
    model = model.dequantize().to(torch.float32)
    model.is_loaded_in_4bit = False
    return model, AutoTokenizer.from_pretrained(quantized_model)


def train(
    quantized_model: Path,
    pairs: list[tuple[str, str]],
    train_prompt: str,
    output_dir: Path,
    max_steps: int,
) -> tuple[list[float], dict[str, Any]]:
    """Train a LoRA adapter; return the loss of each step, and the adapter's tensors."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import Trainer, set_seed
    from trl import SFTTrainer

    model, tokenizer = load(quantized_model)
    texts = [
        train_prompt.format(question, answer) + (tokenizer.eos_token if answer else "")
        for question, answer in pairs
    ]
    set_seed(SEED)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=64,
            lora_alpha=64,
            lora_dropout=0,
            bias="none",
            target_modules=TARGET_MODULES,
            task_type="CAUSAL_LM",
        ),
    )
    adapted.config.use_cache = False
    changes = {
        "max_steps": max_steps,
        "warmup_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataset_text_field": "text",
        "use_cpu": True,
        "bf16": False,
        "optim": "adamw_torch",
        "auto_find_batch_size": False,
        "dataloader_pin_memory": False,
    }
    # the loss of TRL's own class is a Triton kernel, which needs a GPU
    plain = type("PlainTrainer", (SFTTrainer,), {"compute_loss": Trainer.compute_loss})
    trainer = plain(
        model=adapted,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        args=training_arguments(output_dir, **changes),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, get_peft_model_state_dict(adapted)


def build_prompts(
    retriever: Any, pool: list[tuple[str, str]], tasks: list[str], texts: dict[str, str]
) -> list[str]:
    """Return the prompt of each task: its 20 nearest examples, the best one last."""
    questions = [question for question, _ in pool]
    retriever.encode(questions, document_metadatas=[{"at": i} for i in range(len(pool))])
    prompts = []
    for task in tasks:
        found = retriever.search_encoded_docs(task, k=SHOTS)
        shown = ""
        for result in reversed(found):
            question, answer = pool[result["document_metadata"]["at"]]
            shown += texts["few_shot_example"].format(input=question, output=answer)
        prompts.append(texts["few_shot_header"] + shown + texts["task_prompt"].format(input=task))
    return prompts


def answer(
    quantized_model: Path,
    adapter: Path,
    prompts: list[str],
    bad_words: list[str],
    max_new_tokens: int,
) -> list[str]:
    """Answer one prompt after the other, with the adapter unmerged."""
    import torch
    from peft import PeftModel

    base, tokenizer = load(quantized_model)
    model = PeftModel.from_pretrained(base, adapter).eval()
    answers = []
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                **encoded,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                repetition_penalty=1.1,
                bad_words_ids=[
                    tokenizer(word, add_special_tokens=False)["input_ids"] for word in bad_words
                ],
            )
        new = output[0, encoded["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers
