"""Two ways to add an adapter to the quantized model, with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ja_instruct.models.loading import load_nf4_model, load_with_unsloth

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.sft.parameters import SftParameters


def adapt_with_unsloth(
    model: ModelDirectory, parameters: SftParameters
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return the model with an adapter, and its tokenizer, by unsloth; it needs CUDA."""
    base, tokenizer = load_with_unsloth(model, parameters.max_seq_length)
    from unsloth import FastLanguageModel

    lora = parameters.lora
    adapted = FastLanguageModel.get_peft_model(
        base,
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        loftq_config=None,
        use_gradient_checkpointing=(
            "unsloth" if parameters.training.gradient_checkpointing else False
        ),
        random_state=lora.seed,
        max_seq_length=parameters.max_seq_length,
    )
    return adapted, tokenizer


def adapt_with_peft(
    model: ModelDirectory, parameters: SftParameters
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return the model with an adapter, and its tokenizer, by transformers and PEFT."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    lora = parameters.lora
    base = load_nf4_model(model, parameters.device)
    if parameters.device == "cuda":
        base = prepare_model_for_kbit_training(
            base, use_gradient_checkpointing=parameters.training.gradient_checkpointing
        )
    set_seed(lora.seed)
    adapted = get_peft_model(
        base,
        LoraConfig(
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            bias=lora.bias,
            target_modules=list(lora.target_modules),
            use_rslora=lora.use_rslora,
            task_type="CAUSAL_LM",
        ),
    )
    return adapted, model.load_tokenizer()


BACKENDS = {"unsloth": adapt_with_unsloth, "peft": adapt_with_peft}
