"""Load a model on its device, and verify that the weights in memory are the directory's."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ja_instruct.errors import InputError
from ja_instruct.models.safetensors import names_in_model, packed_matrices, read_headers
from ja_instruct.models.text_model import text_settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ja_instruct.models.directory import ModelDirectory

Device = Literal["cpu", "cuda"]

_REMEDY = (
    "the library did not load the directory as it is; use the versions in requirements.txt, or "
    "the backend that runs everywhere (sft.backend=peft, inference.backend=transformers)"
)


def free_gpu_memory() -> None:
    """Free the GPU memory that earlier nodes left behind; call it before loading a model.

    bitsandbytes' matrices and layers reference each other, so only the garbage collector frees
    them. It is triggered by the number of objects, not by their size: 13 GB of a few of them stayed
    allocated beside the next model.
    """
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def load_with_unsloth(
    directory: ModelDirectory, max_seq_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a 4-bit model and its tokenizer with unsloth, on CUDA.

    unsloth gets the absolute path, never a hub name: it maps well-known names to its own 4-bit
    uploads. A hub name that ends in ``-bf16`` also disables 4-bit loading, a directory's name does
    not (unsloth 2026.10); the loaded model is verified in any case.

    Raises:
        InputError: The model in memory is not the directory's.
    """
    # before every other import: it patches transformers, peft and trl
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
    """Load a 4-bit model in the form that its device computes fastest.

    On CUDA the model stays in 4 bits and computes in bfloat16. On a CPU bitsandbytes' 4-bit kernels
    are far slower than plain ones, especially backwards, so the weights are dequantized to float32.
    They have the values that a GPU computes with, rounded to the type in the model's configuration.

    Raises:
        InputError: The model in memory is not the directory's.
    """
    import torch

    attention = _attention_of(directory)
    free_gpu_memory()
    if device == "cuda":
        from accelerate import PartialState

        # Under a launcher each process trains on its own GPU; without one the index is 0.
        index = PartialState().local_process_index
        loaded = directory.load_model(device_map={"": index}, dtype=torch.bfloat16, **attention)
        require_loaded(loaded, directory)
        return loaded
    model: Any = directory.load_model(device_map="cpu", dtype=torch.float32, **attention)
    require_loaded(model, directory)
    model = model.dequantize()
    # dequantize() keeps this flag, and TRL would train the adapter in bfloat16 because of it: many
    # times slower on a processor without bfloat16 units.
    model.is_loaded_in_4bit = False
    return model.to(torch.float32)  # type: ignore[no-any-return]


def _attention_of(directory: ModelDirectory) -> dict[str, str]:
    """Return the arguments that select the attention implementation the model was trained with.

    Gemma 2 has soft-capped attention scores. transformers' default, PyTorch's scaled dot product
    attention, ignores the cap without a warning; ``eager`` applies it.
    """
    config = text_settings(directory.load_config())
    return {"attn_implementation": "eager"} if config.get("attn_logit_softcapping") else {}


def require_loaded(model: PreTrainedModel | PeftModel, directory: ModelDirectory) -> None:
    """Raise ``InputError`` unless ``model`` holds exactly the 4-bit matrices of ``directory``.

    unsloth replaces well-known names by its own uploads and can skip 4-bit loading because of a
    name's ending; transformers leaves a matrix with an unknown name at random values and only
    warns. Three things are compared: the path in the configuration, the set of 4-bit matrices with
    their types, and the packed bytes of the first, the middle and the last matrix.
    """
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    plain: Any = getattr(model, "get_base_model", lambda: model)()
    name = plain.config.name_or_path
    if Path(name).resolve() != directory.path.resolve():
        raise InputError(f"'{name}' was loaded instead of {directory.path}; {_REMEDY}")
    headers = read_headers(directory.path)
    packed = packed_matrices(headers)
    if not packed:
        raise InputError(f"{directory.path}: no 4-bit matrices in its safetensors; {_REMEDY}")
    names = names_in_model(plain, packed)
    matrices: dict[str, Any] = {
        # PEFT wraps an adapted layer in another one
        f"{name.removesuffix('.base_layer')}.weight": layer.weight
        for name, layer in plain.named_modules()
        if isinstance(layer, Linear4bit)
    }
    _require_same_types(
        expected={names[name]: kind for name, kind in packed.items()},
        found={name: weight.quant_type for name, weight in matrices.items()},
    )
    ordered = list(packed)
    for name in (ordered[0], ordered[len(ordered) // 2], ordered[-1]):
        saved = headers[name].load().flatten().view(torch.uint8)
        held = matrices[names[name]].data.flatten().view(torch.uint8)
        if held.shape != saved.shape or not held.equal(saved.to(held.device)):
            raise InputError(f"'{name}' in the model differs from {headers[name].path}; {_REMEDY}")


def _require_same_types(expected: dict[str, str], found: dict[str, str]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        kinds = [kinds.get(name, "not in 4 bits") for kinds in (expected, found)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"'{name}' is {kinds[0]} in the directory, {kinds[1]} in the model; {_REMEDY}"
            )
