"""The hook for a run that Ctrl-C or another signal ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click
import mlflow
import psutil
from kedro.framework.hooks import hook_impl
from kedro.framework.session import KedroSession

from kedro_cuda_runner.resume import this_command
from kedro_cuda_runner.signals import ENDING_SIGNALS

if TYPE_CHECKING:
    from types import FrameType

# ThreadRunner waits for its nodes; CudaRunner kills the nodes' processes after 10 seconds
GRACE_SECONDS = 20.0
# a run that still goes on then says so
NOTICE_SECONDS = 2.0


class StoppedRunHook:
    """Sets the MLflow run of a stopped run to KILLED; the last line is the command that goes on.

    Kedro calls no hook when Ctrl-C ends a run, and MLflow ends its run as FINISHED when the process
    ends. The process ends after 20 seconds even if nodes in other threads go on, and at once on a
    second signal.
    """

    def __init__(self) -> None:
        """Start without a run."""
        self._run_id: str | None = None
        self._is_running = False
        self._is_registered = False
        self._signals = 0
        self._handlers: dict[int, Any] = {}

    @hook_impl
    def after_context_created(self) -> None:
        """End a run of this process, as of a notebook, that Ctrl-C has ended."""
        if self._is_running:
            self.after_pipeline_run()
            self._end_mlflow_run()

    @hook_impl(trylast=True)  # after MLflow's run has started
    def before_pipeline_run(self) -> None:
        """Handle the signals from now on."""
        run = mlflow.active_run()
        self._run_id = None if run is None else run.info.run_id
        self._is_running, self._signals = True, 0
        if not self._is_registered:  # after MLflow's own, so it is called before it
            self._is_registered = True
            atexit.register(self._end_at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ENDING_SIGNALS):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._stop)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Handle the signals no longer."""
        self._is_running = False
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    on_pipeline_error = after_pipeline_run

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not _is_in_run(frame):  # Ctrl-C in a notebook after a run that it has ended
            self.after_pipeline_run()
            signal.raise_signal(number)
            return
        self._signals += 1
        if self._signals > 1:
            self._end_now(number)
        threading.Thread(target=self._end_after_grace, args=(number,), daemon=True).start()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _end_after_grace(self, number: int) -> None:
        time.sleep(NOTICE_SECONDS)
        if self._is_unwinding():
            click.echo(f"Waiting for nodes up to {GRACE_SECONDS:.0f} s; Ctrl-C ends them", err=True)
        time.sleep(GRACE_SECONDS - NOTICE_SECONDS)
        if self._is_unwinding():
            self._end_now(number)

    def _is_unwinding(self) -> bool:
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        return self._signals > 0 and _is_in_run(main)

    def _end_now(self, number: int) -> NoReturn:
        """End the process without waiting for its threads."""
        if self._run_id is not None:
            mlflow.MlflowClient().set_terminated(self._run_id, "KILLED")
        _show_command()
        for child in psutil.Process().children(recursive=True):
            child.terminate()
        sys.stdout.flush()
        os._exit(128 + number)

    def _end_at_exit(self) -> None:
        if self._is_running:
            self.after_pipeline_run()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # MLflow would end the run as FINISHED
            self._end_mlflow_run()
            _show_command()

    def _end_mlflow_run(self) -> None:
        run = mlflow.active_run()
        if run is not None and run.info.run_id == self._run_id:
            mlflow.end_run("KILLED")


def _is_in_run(frame: FrameType | None) -> bool:
    """Return whether ``frame`` or one of its callers is that of a Kedro run."""
    while frame is not None and frame.f_code is not KedroSession.run.__code__:
        frame = frame.f_back
    return frame is not None


def _show_command() -> None:
    click.echo(f"\nStopped. To go on: {this_command('--only-missing-outputs')}", err=True)
