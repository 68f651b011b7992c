"""What the safetensors files of a model directory hold, by their headers: no weights are read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

SIXTEEN_BITS_OR_MORE = frozenset(("BF16", "F16", "F32"))
# bitsandbytes stores beside a matrix what it takes to read it
STATE_MARK = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class TensorHeader:
    """A tensor of a safetensors file.

    Attributes:
        path: The file.
        dtype: As the format names it: ``BF16``, ``U8``.
        shape: Its sizes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]


def read_headers(directory: Path) -> dict[str, TensorHeader]:
    """Return every tensor of a directory's safetensors files by its name, in order.

    Raises:
        InputError: A file is no safetensors file, such as one whose download was cut off.
    """
    from safetensors import SafetensorError, safe_open

    headers = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118
                    tensor = weights.get_slice(name)
                    shape = tuple(tensor.get_shape())
                    headers[name] = TensorHeader(path, tensor.get_dtype(), shape)
        except SafetensorError as error:
            raise InputError(f"{path}: no complete safetensors file ({error})") from error
    return headers


def packed_matrices(headers: Iterable[str]) -> dict[str, str]:
    """Return the matrices that bitsandbytes packed, by name, with their 4-bit type.

    Examples:
        >>> packed_matrices(["a.weight", "a.weight.absmax",
        ...                  "a.weight.quant_state.bitsandbytes__nf4", "b.weight"])
        {'a.weight': 'nf4'}
    """
    marked = (name.partition(STATE_MARK) for name in headers)
    return {name: kind for name, mark, kind in marked if mark}


class TensorReader:
    """Reads single tensors of a model directory, each file opened once and mapped to memory.

    Args:
        headers: What ``read_headers`` found in the directory.

    Examples:
        ``with TensorReader(read_headers(path)) as read: weight = read("model.norm.weight")``
    """

    def __init__(self, headers: dict[str, TensorHeader]) -> None:
        self._headers = headers
        self._files: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._stack.close()

    def __call__(self, name: str) -> Tensor:
        """Return a tensor on the CPU; its bytes are read from the file as they are used."""
        from safetensors import safe_open

        path = self._headers[name].path
        if path not in self._files:
            opened = safe_open(path, framework="pt", device="cpu")
            self._files[path] = self._stack.enter_context(opened)
        tensor: Tensor = self._files[path].get_tensor(name)
        return tensor


def names_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the names of a checkpoint's tensors with those of the model's weights.

    They differ in families whose modules were renamed since they were published, such as the
    multimodal Gemma 3. transformers' own table of renamings is asked, as ``from_pretrained`` does.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [
        one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)
    ]
    state = model.state_dict()
    return {
        name: rename_source_key(
            name, renamings, [], base_model_prefix=model.base_model_prefix, meta_state_dict=state
        )[0]
        for name in names
    }
