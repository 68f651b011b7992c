"""How long a step takes, as one more output of its node."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def timed(step: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return ``step`` with its seconds after its own outputs; a single output becomes a tuple.

    >>> outputs = timed(divmod)(7, 2)
    >>> outputs[:2]
    (3, 1)
    """

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        started = time.perf_counter()
        outputs = step(*args, **kwargs)
        seconds = time.perf_counter() - started
        return (*outputs, seconds) if isinstance(outputs, tuple) else (outputs, seconds)

    return run
