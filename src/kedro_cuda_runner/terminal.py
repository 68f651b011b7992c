"""What nodes in processes of their own print, on one terminal and in order."""

from __future__ import annotations

import codecs
import errno
import fcntl
import logging
import os
import re
import sys
import termios
import threading
import tty
from collections import deque
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, TextIO, TypeVar
from unicodedata import east_asian_width

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

_T = TypeVar("_T")
_R = TypeVar("_R")

KEPT_LINES = 20
KEPT_CHARACTERS = 2000
# how faulthandler describes a crash: its cause, the threads, the innermost frame of each first
CRASH = "Fatal Python error: "
CRASHED_THREAD = re.compile(r"(Current thread|Stack) .*\(most recent call first\)")
CRASH_DETAIL = re.compile(r'  File "|  \.\.\.|  <|Thread 0x|Extension modules: ')
CRASH_FRAMES = 6
# a line or the rest of one; a carriage return goes back to its beginning, as progress bars do
PIECES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
CLEAR_LINE = "\r\x1b[2K"
READ_BYTES = 65536
# a process that prints without end must not keep the others waiting; a pipe holds less than that
READS_AT_ONCE = 16
WIDE = ("W", "F")


class Terminal:
    """Lets several writers share a terminal: none writes into another's unfinished line."""

    def __init__(self) -> None:
        """Start with an empty line."""
        self._lock = threading.RLock()
        # whose line is unfinished, by where it is
        self._open: dict[Hashable, Output] = {}

    def write(self, output: Output, text: str, prefix: str) -> None:
        """Write what an output has received, each of its lines after ``prefix``."""
        with self._lock:
            other = self._open.get(output.place)
            if other is not None and other is not output:
                self._finish(other)
            for piece in PIECES.findall(text):
                shown = piece
                if prefix and output.at_line_start and piece.strip("\r\n"):
                    shown = prefix + piece
                    if output.is_bar:
                        shown = _cut(shown, output.width())
                _write(output.target, shown)
                output.at_line_start = piece.endswith(("\r", "\n"))
                output.is_bar = not piece.endswith("\n") and (output.is_bar or "\r" in piece)
                self._open[output.place] = output
                if piece.endswith("\n"):
                    del self._open[output.place]
            output.target.flush()

    def finish_line(self) -> None:
        """Clear a progress bar, which will be drawn again, or end an unfinished line."""
        with self._lock:
            for output in list(self._open.values()):
                self._finish(output)

    def taking_turn(self, act: Callable[[_T], _R]) -> Callable[[_T], _R]:
        """Return ``act`` on a line of its own, while nobody else writes."""

        def act_in_turn(subject: _T) -> _R:
            with self._lock:
                self.finish_line()
                return act(subject)

        return act_in_turn

    def _finish(self, output: Output) -> None:
        del self._open[output.place]
        is_bar = output.is_bar and output.target.isatty()
        output.target.write(CLEAR_LINE if is_bar else "\n")
        output.target.flush()
        output.at_line_start = True


def _place(target: TextIO) -> Hashable:
    """Return what tells a destination from others: two streams may lead to one terminal or file."""
    try:
        stat = os.fstat(target.fileno())
    except OSError:  # a stream in memory
        return id(target)
    return stat.st_dev, stat.st_ino


def _write(target: TextIO, text: str) -> None:
    try:
        target.write(text)
    except UnicodeEncodeError as error:  # a stream of another encoding that lacks a character
        target.write(text.encode(error.encoding, "replace").decode(error.encoding))


def _cut(bar: str, width: int | None) -> str:
    """Shorten a bar, which its process has fitted to the terminal without the prefix.

    A bar that is wider than the terminal leaves a line behind whenever it is redrawn.
    """
    if width is None or "\x1b" in bar:
        return bar
    text = bar.rstrip("\r\n")
    ends = accumulate(2 if east_asian_width(one) in WIDE else 1 for one in text)
    return text[: sum(end <= width for end in ends)] + bar[len(text) :]


@contextmanager
def logs_in_turn(terminal: Terminal) -> Iterator[None]:
    """Let no log line begin behind a progress bar, or a bar in the middle of a log line.

    While the block runs, each handler of the root logger has the terminal for itself while it
    handles a record.
    """
    handlers = logging.getLogger().handlers[:]
    for handler in handlers:
        handler.handle = terminal.taking_turn(handler.handle)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for handler in handlers:
            del handler.handle  # what remains is the method


class Output:
    """What one process prints to one stream, read without waiting.

    The process gets a terminal where the runner has one, so that progress bars are drawn, and a
    pipe elsewhere.

    Attributes:
        target: Where it is written.
        place: What ``target`` leads to.
        child_end: The file descriptor for the process; close it once it has started.
        at_line_start: Whether the last line was finished.
        is_bar: Whether the unfinished line has been drawn over.
    """

    def __init__(self, target: TextIO, lines: LastLines) -> None:
        self.target = target
        self.place = _place(target)
        self.at_line_start = True
        self.is_bar = False
        self._lines = lines
        # the process takes its encoding from the same place as this one
        encoding = getattr(target, "encoding", None) or "utf-8"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        self._end, self.child_end = _open_terminal() if target.isatty() else os.pipe()
        os.set_blocking(self._end, False)
        self._adopt_size()

    def fileno(self) -> int:
        """Return the end to read from."""
        return self._end

    def width(self) -> int | None:
        """Return the terminal's columns; None where it is none, or has no size."""
        try:
            return os.get_terminal_size(self.target.fileno()).columns or None
        except OSError:
            return None

    def _adopt_size(self) -> None:
        """Give the process's terminal the size of the runner's, which a person may change."""
        try:
            size = fcntl.ioctl(self.target.fileno(), termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._end, termios.TIOCSWINSZ, size)
        except OSError:  # no terminal, or one without a size
            pass

    def read(self) -> str | None:
        """Return what has come; None once no process holds the other end."""
        self._adopt_size()
        parts: list[bytes] = []
        for _ in range(READS_AT_ONCE):
            try:
                data = os.read(self._end, READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that everybody has left, on Linux
                    raise
                data = b""
            if not data:
                if not parts:
                    return None
                break
            parts.append(data)
        text = self._decoder.decode(b"".join(parts))
        self._lines.add(text)
        return text

    def close(self) -> None:
        """Close the end to read from."""
        os.close(self._end)


def _open_terminal() -> tuple[int, int]:
    end, child_end = os.openpty()
    tty.setraw(child_end)  # line breaks stay what they are
    return end, child_end


def open_outputs(lines: LastLines) -> tuple[Output, Output]:
    """Return where a process's standard output and error go; on one terminal they are one."""
    out = Output(sys.stdout, lines)
    same = sys.stdout.isatty() and sys.stderr.isatty()
    return out, out if same else Output(sys.stderr, lines)


class LastLines:
    """The last lines of a process, of a progress bar its last state, of a crash its beginning."""

    def __init__(self, count: int = KEPT_LINES) -> None:
        """Keep ``count`` lines."""
        self._lines: deque[str] = deque(maxlen=count)
        self._rest = ""
        # frames of the crash still to be kept; None outside of its description
        self._frames: int | None = None

    def add(self, text: str) -> None:
        """Take what came, whole lines or not."""
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            self.add_line(line)
        # a bar may be redrawn for days before its line ends
        drawn, returned, drawing = rest.rpartition("\r")
        self._rest = (_last_state(drawn) + returned + drawing)[-KEPT_CHARACTERS:]

    def add_line(self, line: str) -> None:
        """Take a whole line."""
        shown = _last_state(line)
        if shown and self._is_wanted(shown):
            self._lines.append(shown[-KEPT_CHARACTERS:])

    def _is_wanted(self, line: str) -> bool:
        """Tell the frames of a crash that matter from those that would drive them out.

        What faulthandler prints begins with the frame that crashed, but other threads come before
        and after.
        """
        if line.startswith(CRASH):
            self._frames = 0
        elif self._frames is not None and CRASHED_THREAD.match(line):
            self._frames = CRASH_FRAMES
        elif self._frames is not None and CRASH_DETAIL.match(line):
            is_wanted = self._frames > 0
            self._frames = max(0, self._frames - 1)
            return is_wanted
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
