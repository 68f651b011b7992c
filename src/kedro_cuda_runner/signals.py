"""The signals that end a process, so that it can end in order."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _handling(
    numbers: Sequence[signal.Signals], handler: Callable[[int, Any], None]
) -> Iterator[None]:
    """Handle signals, but for those that somebody wants ignored, as ``nohup`` does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it receives signals
        return
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let the signals that end a process do so in order, as Ctrl-C does."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    with _handling(ENDING_SIGNALS, end):
        yield


@contextmanager
def counting_signals() -> Iterator[list[int]]:
    """Collect the signals that would end this process; none interrupts what is under way."""
    come: list[int] = []
    with _handling((signal.SIGINT, *ENDING_SIGNALS), lambda number, _: come.append(number)):
        yield come
