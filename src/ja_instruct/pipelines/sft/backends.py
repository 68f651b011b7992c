"""Two ways to add an adapter to the quantized model, with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.models.loading import load_nf4_model, load_with_unsloth
from ja_instruct.pipelines.sft.target_modules import require_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.sft.parameters import LoraParameters, SftParameters


def adapt_with_unsloth(
    model: ModelDirectory, parameters: SftParameters
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return the model with an adapter, and its tokenizer, by unsloth; it needs CUDA."""
    base, tokenizer = load_with_unsloth(model, parameters.max_seq_length)
    require_targets(parameters.lora.target_modules, base)
    from unsloth import FastLanguageModel

    adapted = FastLanguageModel.get_peft_model(
        base,
        **_lora_arguments(parameters.lora),
        loftq_config=None,
        use_gradient_checkpointing=(
            "unsloth" if parameters.training.gradient_checkpointing else False
        ),
        random_state=parameters.lora.seed,
        max_seq_length=parameters.max_seq_length,
    )
    return adapted, tokenizer


def adapt_with_peft(
    model: ModelDirectory, parameters: SftParameters
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return the model with an adapter, and its tokenizer, by transformers and PEFT."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    base = load_nf4_model(model, parameters.device)
    require_targets(parameters.lora.target_modules, base)
    if parameters.device == "cuda":
        base = prepare_model_for_kbit_training(
            base, use_gradient_checkpointing=parameters.training.gradient_checkpointing
        )
    set_seed(parameters.lora.seed)
    config = LoraConfig(**_lora_arguments(parameters.lora), task_type="CAUSAL_LM")
    return get_peft_model(base, config), model.load_tokenizer()


def _lora_arguments(lora: LoraParameters) -> dict[str, Any]:
    """Return the arguments that unsloth and PEFT have in common."""
    settings = lora.model_dump(exclude={"lora_r", "seed"})
    return {**settings, "r": lora.lora_r, "target_modules": list(lora.target_modules)}


BACKENDS = {"unsloth": adapt_with_unsloth, "peft": adapt_with_peft}
