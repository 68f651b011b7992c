"""The tensors of a model directory's safetensors files, listed without reading their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.models.text_model import text_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

# The types of a model that is not quantized, with the bytes of a weight
BYTES_OF = {"BF16": 2, "F16": 2, "F32": 4}
SIXTEEN_BITS_OR_MORE = frozenset(BYTES_OF)
# bitsandbytes stores the quantization state of a matrix under the matrix's name with this suffix
_STATE_MARK = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class TensorHeader:
    """A tensor of a safetensors file; ``dtype`` is in the format's notation: ``BF16``, ``U8``."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        """Return the tensor on the CPU, memory-mapped: its bytes are read on use."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as weights:
            tensor: Tensor = weights.get_tensor(self.name)
        return tensor


def read_headers(directory: Path) -> dict[str, TensorHeader]:
    """Return the header of every tensor in a directory's safetensors files, by name, in order.

    Raises:
        InputError: A file is not a complete safetensors file, for example after an interrupted
            download.
    """
    from safetensors import SafetensorError, safe_open

    headers = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118
                    tensor = weights.get_slice(name)
                    shape = tuple(tensor.get_shape())
                    headers[name] = TensorHeader(path, name, tensor.get_dtype(), shape)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a complete safetensors file ({error})") from error
    return headers


def packed_matrices(headers: Iterable[str]) -> dict[str, str]:
    """Return the 4-bit type of every matrix that bitsandbytes packed, by name.

    >>> packed_matrices(["a.weight", "a.weight.quant_state.bitsandbytes__nf4", "b.weight"])
    {'a.weight': 'nf4'}
    """
    marked = (name.partition(_STATE_MARK) for name in headers)
    return {name: kind for name, mark, kind in marked if mark}


def names_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the model's name of each tensor of a checkpoint, by the checkpoint's name.

    The names differ in multimodal checkpoints, and in families whose modules were renamed after
    publication. The renamings are those that ``from_pretrained`` applies.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [
        one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)
    ]
    state = model.state_dict()
    return {
        name: rename_source_key(
            text_name(name),
            renamings,
            [],
            base_model_prefix=model.base_model_prefix,
            meta_state_dict=state,
        )[0]
        for name in names
    }
