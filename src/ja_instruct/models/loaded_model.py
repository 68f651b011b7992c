"""Proof that a 4-bit model in memory is the directory that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.safetensors import (
    TensorReader,
    names_in_model,
    packed_matrices,
    read_headers,
)

if TYPE_CHECKING:
    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.models.safetensors import TensorHeader

_REMEDY = (
    "the library did not load the directory as it is; use the versions in requirements.txt, or "
    "the backend that runs everywhere (sft.backend=peft, inference.backend=transformers)"
)


def require_loaded(model: Any, directory: ModelDirectory) -> None:
    """Raise ``InputError`` unless ``model`` holds the 4-bit matrices of ``directory``, all of them.

    unsloth replaces well-known names by uploads of its own and can leave 4 bits out by a name's
    ending; transformers leaves a matrix of an unknown name at random values with a warning. Three
    things are compared: where the configuration says it is from, which matrices are in 4 bits and
    of what type, and the packed bytes of the first, the middle and the last of them.

    Args:
        model: A transformers model, or one wrapped by PEFT.
        directory: A 4-bit model directory.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    _require_name(plain.config.name_or_path, directory)
    headers = read_headers(directory.path)
    packed = packed_matrices(headers)
    if not packed:
        raise InputError(f"{directory.path}: no 4-bit matrices in its safetensors; {_REMEDY}")
    names = names_in_model(plain, packed)
    expected = {names[name]: kind for name, kind in packed.items()}
    layers = _layers_in_4_bits(plain)
    _require_same_layers(expected, {name: one.weight.quant_type for name, one in layers.items()})
    ordered = list(packed)
    chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    _require_same_bytes({name: layers[names[name]] for name in chosen}, headers)


def _require_name(name: str, directory: ModelDirectory) -> None:
    if Path(name).resolve() != directory.path.resolve():
        raise InputError(f"'{name}' was loaded, {directory.path} was asked for; {_REMEDY}")


def _layers_in_4_bits(model: Any) -> dict[str, Any]:
    """Return the model's 4-bit layers by the name of their weight in a plain model."""
    from bitsandbytes.nn.modules import Linear4bit

    return {
        # PEFT puts a layer that it adapts inside of another
        f"{name.removesuffix('.base_layer')}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, Linear4bit)
    }


def _require_same_layers(expected: dict[str, str], found: dict[str, str]) -> None:
    for name in sorted(expected.keys() - found.keys()):
        raise InputError(f"'{name}' is in 4 bits in the directory, not in the model; {_REMEDY}")
    for name in sorted(found.keys() - expected.keys()):
        raise InputError(f"'{name}' is in 4 bits in the model, not in the directory; {_REMEDY}")
    for name, kind in expected.items():
        if found[name] != kind:
            raise InputError(f"'{name}' is {kind} in the directory, {found[name]} in the model")


def _require_same_bytes(layers: dict[str, Any], headers: dict[str, TensorHeader]) -> None:
    import torch

    with TensorReader(headers) as read:
        for name, layer in layers.items():
            saved = read(name).flatten().view(torch.uint8)
            held = layer.weight.data.flatten().view(torch.uint8)
            if held.shape != saved.shape or not held.equal(saved.to(held.device)):
                raise InputError(
                    f"'{name}' of {headers[name].path} is not what the model holds; {_REMEDY}"
                )
