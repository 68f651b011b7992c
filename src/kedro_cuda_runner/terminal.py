"""The output of nodes' processes on one terminal, in order.

Where the runner prints to a terminal, each process gets a pseudo-terminal. On a pipe, even with
``COLUMNS`` and ``FORCE_COLOR`` set, huggingface_hub and click draw no progress bars (they test
``isatty``), tqdm's has ten characters, and C libraries print in blocks. rich's ``Live`` cannot
redraw these bars: they arrive as text, not as tasks.
"""

from __future__ import annotations

import codecs
import errno
import logging
import os
import re
import sys
import termios
import threading
import tty
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from kedro_cuda_runner.failures import LastLines

# a line or part of one; progress bars return to its beginning with a carriage return
PIECES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
CLEAR_LINE = "\r\x1b[2K"
READ_BYTES = 65536
# a process that prints endlessly must not block the others; a pipe holds less than this
READS_AT_ONCE = 16


class Terminal:
    """Lets several processes share a terminal: none writes into an unfinished line of another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # the output with an unfinished line, by place
        self._open: dict[Hashable, Output] = {}

    def write(self, output: Output, text: str, prefix: str) -> None:
        """Write text from an output, each of its lines after ``prefix``."""
        with self._lock:
            other = self._open.get(output.place)
            if other is not None and other is not output:
                self._finish(other)
            for piece in PIECES.findall(text):
                shown = piece
                if prefix and output.at_line_start and piece.strip("\r\n"):
                    shown = prefix + piece
                    if output.is_bar:
                        shown = _crop(shown, output.width())
                _write(output.target, shown)
                output.at_line_start = piece.endswith(("\r", "\n"))
                output.is_bar = not piece.endswith("\n") and (output.is_bar or "\r" in piece)
                self._open[output.place] = output
                if piece.endswith("\n"):
                    del self._open[output.place]
            output.target.flush()

    @contextmanager
    def line_start(self) -> Iterator[None]:
        """Let only this thread write; clear a bar, which will be redrawn, or end a line."""
        with self._lock:
            for output in list(self._open.values()):
                self._finish(output)
            yield

    def _finish(self, output: Output) -> None:
        del self._open[output.place]
        is_bar = output.is_bar and output.target.isatty()
        output.target.write(CLEAR_LINE if is_bar else "\n")
        output.target.flush()
        output.at_line_start = True


def _place(target: TextIO) -> Hashable:
    """Identify the destination of a stream: two streams may lead to one terminal or file."""
    try:
        stat = os.fstat(target.fileno())
    except OSError:  # a stream in memory
        return id(target)
    return stat.st_dev, stat.st_ino


def _write(target: TextIO, text: str) -> None:
    try:
        target.write(text)
    except UnicodeEncodeError as error:  # the stream's encoding lacks a character
        target.write(text.encode(error.encoding, "replace").decode(error.encoding))


def _crop(bar: str, width: int | None) -> str:
    """Shorten a bar, which its process fitted to the terminal without the prefix.

    A bar that is wider than the terminal would leave a line behind whenever it is redrawn.
    """
    text = bar.rstrip("\r\n")
    if width is None or "\x1b" in bar or cell_len(text) <= width:
        return bar
    return set_cell_size(text, width) + bar[len(text) :]


@contextmanager
def logs_on_own_lines(terminal: Terminal) -> Iterator[None]:
    """Let each handler of the root logger write at the start of a line, within the block."""
    handlers = logging.getLogger().handlers[:]
    for handler in handlers:
        handler.handle = partial(_handle, handler.handle, terminal)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handler in handlers:
            del handler.handle  # what remains is the method


def _handle(
    handle: Callable[[logging.LogRecord], bool], terminal: Terminal, record: logging.LogRecord
) -> bool:
    with terminal.line_start():
        return handle(record)


class Output:
    """One output stream of a process, read without blocking.

    Attributes:
        target: The stream to which it is written.
        place: Identifies the destination of ``target``.
        child_end: The file descriptor for the process; close it once the process has started.
        at_line_start: Whether the last line is finished.
        is_bar: Whether the unfinished line has been redrawn.
    """

    def __init__(self, target: TextIO, lines: LastLines) -> None:
        self.target = target
        self.place = _place(target)
        self.at_line_start = True
        self.is_bar = False
        self._lines = lines
        # the process uses the same encoding as this one
        encoding = getattr(target, "encoding", None) or "utf-8"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        self._end, self.child_end = os.openpty() if target.isatty() else os.pipe()
        if target.isatty():
            tty.setraw(self.child_end)  # keeps line breaks as they are
        os.set_blocking(self._end, False)
        self._adopt_size()

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self._end

    def width(self) -> int | None:
        """Return the terminal's columns; None without a terminal or its size."""
        try:
            return os.get_terminal_size(self.target.fileno()).columns or None
        except OSError:
            return None

    def _adopt_size(self) -> None:
        """Copy the size of the runner's terminal, which may change, to the process's."""
        with suppress(OSError, termios.error):  # no terminal, or one without a size
            termios.tcsetwinsize(self._end, termios.tcgetwinsize(self.target.fileno()))

    def read(self) -> str | None:
        """Return what has arrived; None once no process holds the other end."""
        self._adopt_size()
        parts: list[bytes] = []
        for _ in range(READS_AT_ONCE):
            try:
                data = os.read(self._end, READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EIO:  # Linux: every process has closed the terminal
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
        """Close the descriptor to read from."""
        os.close(self._end)


def open_outputs(lines: LastLines) -> tuple[Output, Output]:
    """Return the standard output and error of a process; on one terminal they are the same."""
    out = Output(sys.stdout, lines)
    same = sys.stdout.isatty() and sys.stderr.isatty()
    return out, out if same else Output(sys.stderr, lines)
