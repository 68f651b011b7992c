"""Run a model of any size layer by layer from its safetensors files.

The embedding and the head stay on the device; each decoder layer is loaded once, and all texts pass
through it before the next one is loaded. A model of 109 GB in float32 needs a few gigabytes of GPU
memory and, because the files are memory-mapped, host memory for one matrix. accelerate's disk
offload would read all weights again for every text.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.models.loading import Device, free_gpu_memory
from ja_instruct.models.safetensors import names_in_model, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import dtype, nn
    from transformers import PreTrainedModel

    from ja_instruct.models.directory import ModelDirectory


class StreamedModel:
    """A model whose decoder layers are loaded one at a time.

    Attributes:
        model: The model; embedding, final norm and head are on the device, decoder layers on
            ``meta`` until ``loaded`` loads them.
    """

    def __init__(self, directory: ModelDirectory, device: Device, compute_dtype: dtype) -> None:
        from accelerate.utils import set_module_tensor_to_device

        free_gpu_memory()
        self._directory = directory
        self._device = device
        self.model = _empty_model(directory, compute_dtype)
        headers = read_headers(directory.path)
        names = names_in_model(self.model, headers)
        self._stored = {names[stored]: header for stored, header in headers.items()}
        for name, buffer in list(self.model.named_buffers()):
            tensor = self._stored[name].load() if name in self._stored else buffer
            set_module_tensor_to_device(self.model, name, device, tensor)
        decoder = self.model.get_decoder()
        self._fill(decoder, leave_out=decoder.layers)
        self.model.tie_weights()
        self._fill(self.model.get_output_embeddings())

    @contextmanager
    def loaded(self, layer: nn.Module) -> Iterator[None]:
        """Keep a decoder layer's weights on the device while the context is active."""
        from accelerate.utils import set_module_tensor_to_device

        self._fill(layer)
        try:
            yield
        finally:
            for name, _ in list(layer.named_parameters()):
                set_module_tensor_to_device(layer, name, "meta")

    def _fill(self, module: nn.Module, *, leave_out: nn.Module | None = None) -> None:
        """Load the weights of ``module`` that are still on ``meta``."""
        from accelerate.utils import set_module_tensor_to_device

        names = {id(weight): name for name, weight in self.model.named_parameters()}
        left_out = {id(weight) for weight in leave_out.parameters()} if leave_out else set()
        for name, weight in list(module.named_parameters()):
            if id(weight) in left_out or not weight.is_meta:
                continue
            full_name = names[id(weight)]
            if full_name not in self._stored:
                raise InputError(
                    f"{self._directory.path}: its safetensors have no '{full_name}', which the "
                    f"model needs; download it again"
                )
            # on the device before it is cast: faster, and without a copy in host memory
            tensor = self._stored[full_name].load().to(self._device)
            set_module_tensor_to_device(module, name, self._device, tensor, clear_cache=False)


def _empty_model(directory: ModelDirectory, compute_dtype: dtype) -> PreTrainedModel:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = directory.load_causal_config()
    # buffers such as rotary frequencies are computed, not stored
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=compute_dtype, attn_implementation="eager"
        )
    model.tie_weights()
    model.eval()
    return model
