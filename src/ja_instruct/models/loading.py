"""Where a model runs and how it is loaded there."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Literal

from ja_instruct.models.loaded_model import require_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ja_instruct.models.directory import ModelDirectory

Device = Literal["cpu", "cuda"]


def free_gpu_memory() -> None:
    """Give back what earlier nodes have left on the GPU; called before a model is loaded.

    bitsandbytes' matrices and their layers refer to each other, so they go only when Python next
    looks for cycles. It does so by the number of objects: 13 GB of a few of them stayed beside the
    next model.
    """
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def load_with_unsloth(directory: ModelDirectory, max_seq_length: int) -> tuple[Any, Any]:
    """Load a 4-bit model with unsloth, on CUDA; return model and tokenizer.

    unsloth is given the absolute path, never a hub name: it maps well-known names to its own
    4-bit uploads. A name that ends in ``-bf16`` switches 4-bit off on the hub alone, not for a
    directory (unsloth 2026.10); what was loaded is compared with the directory all the same.

    Raises:
        InputError: The model in memory is not the directory's.
    """
    # first of all: it patches transformers, peft and trl
    from unsloth import FastLanguageModel

    free_gpu_memory()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(directory.path),
        max_seq_length=max_seq_length,
        dtype=None,
        load_in_4bit=True,
        local_files_only=True,
    )
    require_loaded(model, directory)
    return model, tokenizer


def load_nf4_model(directory: ModelDirectory, device: Device) -> PreTrainedModel:
    """Load a 4-bit model the way its device computes best.

    On CUDA it stays in 4 bits, computed in bfloat16. On a CPU bitsandbytes' 4-bit kernels are
    far slower than plain ones, above all backwards, so the weights are dequantized: the numbers
    that a GPU computes with, rounded to the type in the model's configuration, as float32.

    Raises:
        InputError: The model in memory is not the directory's.
    """
    import torch

    attention = _attention_of(directory)
    free_gpu_memory()
    if device == "cuda":
        from accelerate import PartialState

        # a launcher starts one process a GPU, and each trains on its own; without one it is 0
        index = PartialState().local_process_index
        loaded = directory.load_model(device_map={"": index}, dtype=torch.bfloat16, **attention)
        require_loaded(loaded, directory)
        return loaded
    model: Any = directory.load_model(device_map="cpu", dtype=torch.float32, **attention)
    require_loaded(model, directory)
    model = model.dequantize()
    # dequantize() leaves the mark, for which TRL would train the adapter in bfloat16, many times
    # slower on a processor without bfloat16 units
    model.is_loaded_in_4bit = False
    return model.to(torch.float32)  # type: ignore[no-any-return]


def _attention_of(directory: ModelDirectory) -> dict[str, str]:
    """Return the implementation that computes a model's attention as it was trained.

    Gemma 2 bounds its attention scores. transformers' default, PyTorch's scaled dot product, leaves
    the bound out without a word; written out (``eager``) it is there.
    """
    config = directory.load_config()
    text = {**config, **config.get("text_config", {})}
    return {"attn_implementation": "eager"} if text.get("attn_logit_softcapping") else {}
