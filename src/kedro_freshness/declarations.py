"""What does not matter to the outputs of a node, declared at its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

PREFIX = "params:"
NAMES = "unaffected_by"


@dataclass(frozen=True)
class WithoutEffect:
    """Inputs and parameters that cannot change the outputs of a function.

    Attributes:
        names: As ``unaffected_by`` gets them.
        but: Exceptions.
    """

    names: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Return whether a dataset or parameter has no effect."""
        return _is_below(name, self.names) and not _is_below(name, self.but)


def unaffected_by(*names: str, but: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Declare inputs and parameters that cannot change the outputs of a node's function.

    The function itself is returned, with the declaration as its attribute ``unaffected_by``.

    Args:
        names: Datasets, and parameters as Kedro names them; a section stands for all its
            parameters. Without the node's namespace.
        but: Parameters in these sections that do count.

    Raises:
        TypeError: ``but`` is a string, or the function takes no attribute, as a built-in one.

    Examples:
        >>> @unaffected_by("cache", "params:training.device", "params:training.gpu")
        ... def train(data, cache, training): ...
        >>> train.unaffected_by.covers("params:training.gpu.memory_gb")
        True
        >>> train.unaffected_by.covers("params:training.epochs")
        False
    """
    if isinstance(but, str):
        raise TypeError(f"but={but!r} must be a tuple: but=({but!r},)")

    def attach(function: Function) -> Function:
        vars(function)[NAMES] = WithoutEffect(names, but)
        return function

    return attach


def without_effect(function: Callable[..., Any] | None) -> WithoutEffect:
    """Return what ``unaffected_by`` declares for a function, also below partials and wrappers."""
    while function is not None:
        declared = getattr(function, NAMES, None)
        if isinstance(declared, WithoutEffect):
            return declared
        function = getattr(function, "func", None) or getattr(function, "__wrapped__", None)
    return WithoutEffect()


def _is_below(name: str, sections: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in sections)
