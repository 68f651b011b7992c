"""The last lines that a process printed, for its error message."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

KEPT_LINES = 20
KEPT_CHARACTERS = 2000
# faulthandler's report of a crash: its cause, then for each thread the innermost frame first
CRASH = "Fatal Python error: "
CRASHED_THREAD = re.compile(r"(Current thread|Stack) .*\(most recent call first\)")
CRASH_DETAIL = re.compile(r'  File "|  \.\.\.|  <|Thread 0x|Extension modules: ')
CRASH_FRAMES = 6


class LastLines:
    """Keeps the last lines: the last state of a progress bar, the first frames of a crash."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = ""
        # frames of a crash still to be kept; None outside of its report
        self._frames: int | None = None

    def add(self, text: str) -> None:
        """Add text that may begin or end within a line."""
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            self.add_line(line)
        # a bar may be redrawn for days before its line ends
        drawn, returned, drawing = rest.rpartition("\r")
        self._rest = (_last_state(drawn) + returned + drawing)[-KEPT_CHARACTERS:]

    def add_line(self, line: str) -> None:
        """Add a whole line."""
        shown = _last_state(line)
        if shown and self._is_kept(shown):
            self._lines.append(shown[-KEPT_CHARACTERS:])

    def _is_kept(self, line: str) -> bool:
        """Drop the frames of other threads and all but the innermost of the crashed one."""
        if line.startswith(CRASH):
            self._frames = 0
        elif self._frames is not None and CRASHED_THREAD.match(line):
            self._frames = CRASH_FRAMES
        elif self._frames is not None and CRASH_DETAIL.match(line):
            is_kept = self._frames > 0
            self._frames = max(0, self._frames - 1)
            return is_kept
        else:
            self._frames = None
        return True

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, the oldest first."""
        yield from self._lines
        if rest := _last_state(self._rest):
            yield rest


def _last_state(line: str) -> str:
    return next((state for state in reversed(line.rstrip().split("\r")) if state.strip()), "")
