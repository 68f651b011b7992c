"""Run a model of any size layer by layer from its safetensors files.

The embedding and the head stay on the device; each decoder layer is loaded once, and all texts pass
through it before the next one is loaded. A 16-bit model of 54 GB needs a few gigabytes of GPU
memory and, because the files are memory-mapped, host memory for one matrix. accelerate's disk
offload would read all weights again for every text.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.loading import Device, free_gpu_memory
from ja_instruct.models.safetensors import TensorReader, names_in_model, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, dtype, nn
    from transformers import PreTrainedModel

    from ja_instruct.models.directory import ModelDirectory


class StreamedModel:
    """A model whose decoder layers are loaded one at a time.

    Args:
        directory: A 16-bit model directory.
        device: The device that runs the model.
        compute_dtype: The type of the weights on the device.

    Attributes:
        model: The model; embedding, final norm and head are on the device, decoder layers on
            ``meta`` until ``loaded`` loads them.
    """

    model: PreTrainedModel

    def __init__(self, directory: ModelDirectory, device: Device, compute_dtype: dtype) -> None:
        free_gpu_memory()
        self._directory = directory
        self._device = device
        self.model = _empty_model(directory, compute_dtype)
        headers = read_headers(directory.path)
        self._checkpoint_names = {
            name: stored for stored, name in names_in_model(self.model, headers).items()
        }
        self._reader = TensorReader(headers)
        for name, buffer in list(self.model.named_buffers()):
            stored = self._checkpoint_names.get(name)
            tensor = buffer if stored is None else self._reader(stored)
            _put(self.model, name, tensor.to(device))
        decoder = self.model.get_decoder()
        self._fill(decoder, leave_out=decoder.layers)
        self.model.tie_weights()
        self._fill(self.model.get_output_embeddings())

    def __enter__(self) -> StreamedModel:
        """Return the model."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._reader.__exit__(*error)

    @contextmanager
    def loaded(self, layer: nn.Module) -> Iterator[None]:
        """Keep a decoder layer's weights on the device while the context is active."""
        self._fill(layer)
        try:
            yield
        finally:
            for name, weight in list(layer.named_parameters()):
                _put(layer, name, weight.to("meta"))

    def _fill(self, module: nn.Module, *, leave_out: nn.Module | None = None) -> None:
        """Load the weights of ``module`` that are still on ``meta``."""
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        left_out = {id(weight) for weight in leave_out.parameters()} if leave_out else set()
        for name, weight in list(module.named_parameters()):
            if id(weight) in left_out or not weight.is_meta:
                continue
            stored = self._checkpoint_names.get(names[id(weight)])
            if stored is None:
                raise InputError(
                    f"{self._directory.path}: its safetensors have no '{names[id(weight)]}', "
                    f"which the model needs; download it again"
                )
            # cast on the device: faster, and without a copy in host memory
            _put(module, name, self._reader(stored).to(self._device).to(weight.dtype))


def _empty_model(directory: ModelDirectory, compute_dtype: dtype) -> PreTrainedModel:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory.path, local_files_only=True)
    # buffers such as rotary frequencies are computed, not stored
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=compute_dtype, attn_implementation="eager"
        )
    model.tie_weights()
    empty: PreTrainedModel = model.eval()
    return empty


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or a buffer of ``module`` or its submodules."""
    from torch.nn import Parameter

    owner, _, attribute = name.rpartition(".")
    target = module.get_submodule(owner)
    is_parameter = attribute in dict(target.named_parameters(recurse=False))
    setattr(target, attribute, Parameter(tensor, requires_grad=False) if is_parameter else tensor)
