"""Python objects on their way between the runner's process and a node's."""

from __future__ import annotations

import io
import pickle
import sys
import types
from dataclasses import dataclass
from typing import Any

# A report, a handle or a table of a hundred thousand short records; the weights of a model are not
# copied through a pipe to be shown to a hook.
HOOK_BYTES_MAX = 64 * 2**20


class NotTransferableError(Exception):
    """An object that cannot, or should not, leave its process; the message says why."""


class StandInError(Exception):
    """Stands for an exception that cannot leave its process; its text names the type."""


@dataclass(frozen=True)
class NotTransferred:
    """What a hook gets in place of data that stayed in the process of its node.

    Attributes:
        type_name: The type of the data, with its module.
        reason: Why it was not sent.
    """

    type_name: str
    reason: str


class _LimitedBuffer(io.BytesIO):
    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any, /) -> int:
        if self._limit is not None and self.tell() + len(data) > self._limit:
            raise NotTransferableError(f"larger than {self._limit / 2**20:.0f} MiB")
        return super().write(data)


class _Pickler(pickle.Pickler):
    """Refuses tensors that would take GPU memory, or import PyTorch, where they arrive."""

    def __init__(self, file: io.BytesIO, *, tensors: bool) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            raise NotTransferableError(
                f"'{obj.__qualname__}' is defined in the script or notebook that runs, which "
                f"another process does not import; put it into a module"
            )
        torch = sys.modules.get("torch")
        # a module that is still being imported by another thread lacks its classes
        tensor, layer = (
            getattr(torch, "Tensor", ()),
            getattr(getattr(torch, "nn", None), "Module", ()),
        )
        if isinstance(obj, tensor):
            if obj.device.type != "cpu":
                raise NotTransferableError(
                    f"it holds a tensor on {obj.device}; move it to the CPU with .cpu()"
                )
            if not self._tensors:
                raise NotTransferableError("it holds tensors")
        if isinstance(obj, layer) and not self._tensors:
            raise NotTransferableError("it holds a model")
        return NotImplemented


def dumps(value: Any, *, limit: int | None = None, tensors: bool = True) -> bytes:
    """Pickle an object.

    Args:
        value: The object.
        limit: Most bytes.
        tensors: Whether PyTorch's tensors and modules may be part of it, on the CPU.

    Raises:
        NotTransferableError: It cannot be pickled, or breaks these rules.
    """
    buffer = _LimitedBuffer(limit)
    try:
        _Pickler(buffer, tensors=tensors).dump(value)
    except NotTransferableError:
        raise
    except Exception as error:  # whatever the object's own reducer raises
        raise NotTransferableError(f"it cannot be pickled: {error}") from error
    return buffer.getvalue()


def pack_for_hooks(value: Any) -> bytes | NotTransferred:
    """Return an object as bytes, or what stands for it where that is impossible or too much."""
    kind = type(value)
    try:
        return dumps(value, limit=HOOK_BYTES_MAX, tensors=False)
    except NotTransferableError as error:
        return NotTransferred(f"{kind.__module__}.{kind.__qualname__}", str(error))


def unpack_for_hooks(packed: bytes | NotTransferred) -> Any:
    """Return the object, or what stands for it."""
    if isinstance(packed, NotTransferred):
        return packed
    try:
        return pickle.loads(packed)  # noqa: S301 - from this project's own process
    except Exception as error:  # e.g. a class made in the node's process alone
        return NotTransferred("unknown", f"it cannot be unpickled here: {error}")


def pack_error(error: Exception) -> bytes:
    """Return an exception as bytes, or what stands for it; either is an exception again."""
    try:
        packed = dumps(error, tensors=False)
        pickle.loads(packed)  # noqa: S301 - many exceptions pickle and then fail to unpickle
    except Exception:  # then its text has to do
        return dumps(StandInError(f"{type(error).__name__}: {error}"))
    return packed
