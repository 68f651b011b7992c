"""Makes a process die at a chosen moment of its own work: while it writes or renames a file.

The project's code stays as it is: an audit hook watches the files that Python opens and renames.
Only the standard library is imported, since processes import this before anything else.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

VARIABLE = "JA_FAULTS_AIM"
RUNNER = "JA_FAULTS_RUNNER"
TEMPORARY = re.compile(r"/\.([^/]+?)\.[0-9a-f]{8}\.(?:new|old)(?=/|$)")
WRITES = os.O_WRONLY | os.O_RDWR
# as long as it takes the harness to notice and to kill the rest
PAUSE_SECONDS = 60


class Aim:
    """The moment at which this process dies.

    Args:
        kind: ``write``: at the opening of the target for writing, after ``size`` more bytes of
            it; ``before_rename`` and ``after_rename``: around the rename to it; ``store``: when
            the tracking store is opened, which is only reported.
        data: The folder that the target is in.
        target: A path below ``data``, ``mlflow/mlflow.db`` for the store.
        size: The bytes that are still written.
        victims: ``all``, ``parent`` (the runner) or ``child`` (the process of a node).
        armed: The file in which the moment is reported, with this process' id.
    """

    def __init__(
        self, kind: str, data: str, target: str, size: int, victims: str, armed: str
    ) -> None:
        self.kind = kind
        self.data = f"{data}/"
        self.target = target
        self.size = size
        self.victims = victims
        self.armed = armed
        self.runner = int(os.environ.setdefault(RUNNER, str(os.getpid())))
        self.is_due = self.is_done = False

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Die if an audit event is the moment."""
        if self.is_done:
            return
        if self.is_due:
            self._die()
        elif event == "open" and self.kind == "write":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and self._is_target(path):
                self._write_a_part(path)
        elif event == "os.rename" and self.kind != "store":
            self._rename(arguments[1])
        elif event == "sqlite3.connect" and self.kind == "store" and self._is_store(arguments[0]):
            self._report()

    def _is_store(self, path: Any) -> bool:
        """Return whether it is the store, or a temporary file that becomes it."""
        return f"{self.data}mlflow/" in str(path)

    def _is_target(self, path: Any, *, or_above: bool = False) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        absolute = os.path.abspath(os.fspath(path))  # noqa: PTH100 - Path is slower
        if not absolute.startswith(self.data):
            return False
        name = TEMPORARY.sub(r"/\1", absolute).removeprefix(self.data)
        return name == self.target or (or_above and self.target.startswith(f"{name}/"))

    def _rename(self, path: Any) -> None:
        if not self._is_target(path, or_above=True):
            return
        if self.kind == "after_rename":
            self.is_due = True
        else:  # a write by a native library, which opens its files itself, ends here
            self._die()

    def _write_a_part(self, path: Any) -> None:
        """Let the kernel end this process in the middle of a write."""
        if self._report():
            file = Path(path)
            size = self.size + (file.stat().st_size if file.exists() else 0)
            # Python ignores the signal; its default ends the process as SIGKILL would
            ctypes.CDLL(None).signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def _die(self) -> None:
        if self._report():
            os.kill(os.getpid(), signal.SIGKILL)

    def _report(self) -> bool:
        """Report the moment once; return whether this process is to die."""
        is_runner = os.getpid() == self.runner
        if self.victims == "child" and is_runner:
            return False
        self.is_done = True
        try:
            with open(self.armed, "x") as file:  # noqa: PTH123 - no more events than needed
                file.write(str(os.getpid()))
        except FileExistsError:  # another process was first
            return False
        if self.victims == "parent" and not is_runner:
            os.kill(self.runner, signal.SIGKILL)
            return False
        if self.victims == "all" and not is_runner:
            # the harness kills it; until then it must not tidy up behind this process
            os.kill(self.runner, signal.SIGSTOP)
        return True


def install() -> None:
    """Watch this process if the environment names a moment."""
    if VARIABLE in os.environ:
        sys.addaudithook(Aim(**json.loads(os.environ[VARIABLE])).watch)
