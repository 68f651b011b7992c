"""Handlers for the signals that end a process, so that it can stop in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handling(
    numbers: Sequence[signal.Signals], handler: Callable[[int, Any], None]
) -> Iterator[None]:
    """Handle signals, except those that are ignored, as under ``nohup``."""
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


def exit_on_signal(number: int, _: Any) -> None:
    """Raise ``SystemExit`` with the exit code of a process that the signal ended."""
    raise SystemExit(128 + number)
