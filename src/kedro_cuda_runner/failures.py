"""How a node's process ended, and the error message if it has failed, with its last lines."""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kedro_cuda_runner.channel import Failure
from kedro_cuda_runner.errors import GpuNodeError
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.report import NodeRecord

SHOWN_LINES = 10
KEPT_LINES = 20
KEPT_CHARACTERS = 2000
# faulthandler's report of a crash: its cause, then for each thread the innermost frame first
CRASH = "Fatal Python error: "
CRASHED_THREAD = re.compile(r"(Current thread|Stack) .*\(most recent call first\)")
CRASH_DETAIL = re.compile(r'  File "|  \.\.\.|  <|Thread 0x|Extension modules: ')
CRASH_FRAMES = 6
# the node's process exits with this code on SIGTERM
ENDED_ON_REQUEST = 128 + signal.SIGTERM
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


@dataclass
class Ending:
    """How a process ended.

    Attributes:
        done: Whether the node finished and its outputs are saved.
        failure: The exception that the process reported.
        exit_code: Exit code of the process, or the negative number of the signal that ended it.
        torch_peak_bytes: Peak of PyTorch's allocator on one device.
        unfinished: Outputs that it was saving.
        inputs: Inputs that were passed to hooks.
        reported_to_hooks: Whether ``on_node_error`` was called.
    """

    done: bool = False
    failure: Failure | None = None
    exit_code: int | None = None
    torch_peak_bytes: int | None = None
    last_lines: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    reported_to_hooks: bool = False


def explain(ending: Ending, record: NodeRecord, *, remedy: str) -> GpuNodeError:
    """Return the error for a node that was not finished; ``remedy`` is for lack of GPU memory."""
    reason, description = _reason(ending)
    lines = [f"node '{record.node}' {description} on {record.place}", *_memory(record)]
    if reason == "killed" and ending.exit_code == -signal.SIGKILL:
        lines.append(
            f"  the kernel kills a process when the computer's memory runs out; this one used up "
            f"to {gigabytes(record.host_peak_bytes)} of it"
        )
    if ending.unfinished:
        names = ", ".join(f"'{name}'" for name in ending.unfinished)
        lines.append(f"  {names} was not finished; the part that was written is removed")
    shown = ending.last_lines[-SHOWN_LINES:]
    if shown and not (ending.failure and ending.failure.is_usage_error):
        lines += ["  its last lines:", *(f"  | {line}" for line in shown)]
    if reason == "out of memory" and remedy:
        lines.append(f"  remedy: {remedy}")
    return GpuNodeError("\n".join(lines), node_name=record.node, reason=reason)


def _reason(ending: Ending) -> tuple[str, str]:
    failure, code = ending.failure, ending.exit_code or 0
    if failure is not None:
        text = f"{failure.type_name}: {failure.message}".strip()
        if failure.out_of_memory:
            return "out of memory", f"ran out of GPU memory ({text.splitlines()[0]})"
        if failure.is_usage_error:
            return "exception", f"failed: {failure.message}\n "
        return "exception", f"failed with {text}\n "
    if code == ENDED_ON_REQUEST:
        return "killed", "received SIGTERM from outside"
    if code >= 0:
        return "exited", f"ended its process (exit code {code}) before it was done"
    if -code == signal.SIGSEGV:
        return "crashed", "crashed with a segmentation fault (SIGSEGV)"
    # most real-time signals have no name
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return (
        ("crashed", f"crashed ({name})") if -code in CRASHES else ("killed", f"was killed ({name})")
    )


def _memory(record: NodeRecord) -> list[str]:
    if not record.device_bytes:
        return []
    peak = "unknown" if record.peak_bytes is None else gigabytes(record.peak_bytes)
    line = (
        f"  GPU memory: peak {peak} of {gigabytes(record.available_bytes)} that were free "
        f"({gigabytes(record.device_bytes)} in all)"
    )
    if record.estimated_bytes is not None:
        line += f"; the estimate was {gigabytes(record.estimated_bytes)}"
    return [line]


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
