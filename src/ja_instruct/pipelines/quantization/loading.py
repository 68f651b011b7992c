"""Load a model of 16 or 32 bits, and quantize its matrices while they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.loading import free_gpu_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

# Rows of a matrix that are cast at a time
_ROWS = 4096


def load_in_4_bits(
    base_model: ModelDirectory, parameters: QuantizationParameters
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Return the quantized model, and the memory of the model and at the peak, in 10⁹ bytes.

    Every weight is read in ``load_dtype``: the matrices are quantized from it, and the others are
    cast to ``compute_dtype`` afterwards, in which they are saved.

    Raises:
        InputError: A weight is not finite in ``load_dtype``.
    """
    import torch
    from transformers import BitsAndBytesConfig

    free_gpu_memory()
    on_gpu = parameters.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    compute_dtype = getattr(torch, parameters.compute_dtype)
    model = base_model.load_model(
        device_map={"": 0} if on_gpu else "cpu",
        dtype=getattr(torch, parameters.load_dtype),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=parameters.quant_type,
            bnb_4bit_use_double_quant=parameters.double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
    )
    _require_finite(model, base_model, parameters.load_dtype)
    _cast(model, compute_dtype)
    memory = {"model": model.get_memory_footprint()}
    if on_gpu:
        memory["gpu_peak"] = torch.cuda.max_memory_allocated()
    return model, {name: round(used / 1e9, 3) for name, used in memory.items()}


def _require_finite(model: PreTrainedModel, source: ModelDirectory, load_dtype: str) -> None:
    """Raise ``InputError`` for a weight that is infinite or not a number in ``load_dtype``.

    The largest value of each block of 64 is kept with a 4-bit matrix; with double quantization
    their mean is. Neither is finite if one of the values is not.
    """
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        values = weight if state is None else state.offset if state.nested else state.absmax
        # isfinite would need twice the memory of the embedding, the extremes need none
        least, largest = values.aminmax()
        if not (least.isfinite() and largest.isfinite()):
            wider = "bfloat16" if load_dtype == "float16" else "float32"
            raise InputError(
                f"base_model '{source.model_id}' at {source.path}: '{name}' is not finite in "
                f"{load_dtype}; "
                + (
                    "its files are damaged: download them again"
                    if load_dtype == "float32"
                    else f"set quantization.load_dtype to {wider}, which holds larger numbers, or "
                    f"download the files again if they are damaged"
                )
            )


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights that are not in 4 bits, and let the 4-bit ones be dequantized to ``dtype``.

    The embedding of Gemma 2 27B has 2.4 GB; where the two types have the same size, it is cast in
    its own memory.
    """
    for weight in model.parameters():
        state: Any = getattr(weight, "quant_state", None)
        if state is not None:
            state.dtype = dtype
        elif weight.dtype != dtype:
            weight.data = _cast_tensor(weight.data, dtype)


def _cast_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype.itemsize != dtype.itemsize:
        return tensor.to(dtype)
    cast = tensor.view(dtype)
    for old, new in zip(tensor.split(_ROWS), cast.split(_ROWS), strict=True):
        new.copy_(old.to(dtype))
    return cast
