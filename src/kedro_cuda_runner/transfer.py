"""Pickling of the objects that pass between the runner's process and a node's."""

from __future__ import annotations

import io
import pickle
import sys
import types
from dataclasses import dataclass
from typing import Any

# enough for a report, a handle or a table of 100,000 short records; the weights of a model are not
# copied between processes for a hook
HOOK_BYTES_MAX = 64 * 2**20


class NotTransferableError(Exception):
    """An object cannot, or should not, leave its process; the message says why."""


class StandInError(Exception):
    """Replaces an exception that cannot leave its process; its text names the type."""


@dataclass(frozen=True)
class NotTransferred:
    """Replaces data that stayed in the node's process, when it is passed to a hook.

    Attributes:
        type_name: Type of the data with its module.
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
    """Refuses tensors that would allocate GPU memory, or import PyTorch, in the other process."""

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
        # another thread may still be importing it: then it lacks its classes
        tensor: Any = getattr(torch, "Tensor", ())
        module: Any = getattr(getattr(torch, "nn", None), "Module", ())
        if isinstance(obj, tensor):
            if obj.device.type != "cpu":
                raise NotTransferableError(
                    f"it holds a tensor on {obj.device}; move it to the CPU with .cpu()"
                )
            if not self._tensors:
                raise NotTransferableError("it holds tensors")
        if isinstance(obj, module) and not self._tensors:
            raise NotTransferableError("it holds a model")
        return NotImplemented


def dumps(value: Any, *, limit: int | None = None, tensors: bool = True) -> bytes:
    """Pickle an object.

    Args:
        value: The object.
        limit: Maximum number of bytes.
        tensors: Whether it may contain PyTorch tensors on the CPU and modules.

    Raises:
        NotTransferableError: It cannot be pickled, or breaks these rules.
    """
    buffer = _LimitedBuffer(limit)
    try:
        _Pickler(buffer, tensors=tensors).dump(value)
    except NotTransferableError:
        raise
    except Exception as error:  # raised by the object's own reducer
        raise NotTransferableError(f"it cannot be pickled: {error}") from error
    return buffer.getvalue()


def pack_for_hooks(value: Any) -> bytes | NotTransferred:
    """Pickle an object for a hook, or return a replacement if it cannot be pickled or is large."""
    kind = type(value)
    try:
        return dumps(value, limit=HOOK_BYTES_MAX, tensors=False)
    except NotTransferableError as error:
        return NotTransferred(f"{kind.__module__}.{kind.__qualname__}", str(error))


def unpack_for_hooks(packed: bytes | NotTransferred) -> Any:
    """Return the object or its replacement."""
    if isinstance(packed, NotTransferred):
        return packed
    try:
        return pickle.loads(packed)  # noqa: S301 - from the node's process
    except Exception as error:  # such as a class that exists only in the node's process
        return NotTransferred("unknown", f"it cannot be unpickled here: {error}")


def pack_error(error: Exception) -> bytes:
    """Pickle an exception, or a ``StandInError`` with its text if that is impossible."""
    try:
        packed = dumps(error, tensors=False)
        pickle.loads(packed)  # noqa: S301 - some exceptions can be pickled but not unpickled
    except Exception:
        return dumps(StandInError(f"{type(error).__name__}: {error}"))
    return packed
