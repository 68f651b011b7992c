"""One run: its pending, running and failed nodes."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner.task import Task

from kedro_cuda_runner.devices import Device
from kedro_cuda_runner.errors import CudaRunnerError, GpuNodeError
from kedro_cuda_runner.node_process import RunContext
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.report import NodeRecord, log_to_mlflow
from kedro_cuda_runner.resources import Resources
from kedro_cuda_runner.resume import resume_command
from kedro_cuda_runner.signals import ENDING_SIGNALS, exit_on_signal, handling
from kedro_cuda_runner.supervisor import Supervisor
from kedro_cuda_runner.terminal import logs_on_own_lines

logger = logging.getLogger(__name__)
# for the messages that Kedro's own runners log too
kedro_logger = logging.getLogger("kedro.runner.cuda_runner")

# how long a process may take to terminate before it is killed
STOP_SECONDS = 10.0
# how long to wait for memory that was free before the run and that another program uses now
MEMORY_WAIT_SECONDS = 60.0


class Scheduler:
    """Runs each node once its inputs exist and the machine has room for it.

    The calling thread runs the nodes of this process one after another; each node with its own
    process has a thread that serves it. A thread that finishes a node starts the nodes that are
    ready then, so that a long node here does not delay the devices. After an error no further node
    starts, but running nodes may finish, so that their work is kept.

    Attributes:
        records: The records of the nodes in the order of their starts.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        resources: dict[Node, Resources],
        placement: Placement,
        shared: RunContext,
        release: Callable[..., None],
        suggest_resume: Callable[[set[Node]], None],
    ) -> None:
        """Prepare a run; the nodes among ``resources`` get their own processes.

        Kedro's runner provides ``release``, which releases data that no further node loads, and
        ``suggest_resume``, which logs how to resume after the given nodes.
        """
        self.records: list[NodeRecord] = []
        self._pipeline = pipeline
        self._resources = resources
        self._placement = placement
        self._shared = shared
        self._release = release
        self._suggest_resume = suggest_resume
        self._state = threading.Condition(threading.RLock())
        self._dependencies = pipeline.node_dependencies
        self._todo = by_urgency(pipeline, resources)
        self._done: set[Node] = set()
        self._running = shared.running
        self._threads: list[threading.Thread] = []
        self._here: Node | None = None
        self._error: Exception | None = None
        self._is_stopping = False
        self._waiting_since: float | None = None
        self._started = time.perf_counter()
        self._load_counts = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))

    def run(self) -> None:
        """Run all nodes; raise the first error once no node runs any more."""
        try:
            with logs_on_own_lines(self._shared.terminal), handling(ENDING_SIGNALS, exit_on_signal):
                try:
                    self._loop()
                except BaseException as error:  # mostly Ctrl-C; no process outlives the run
                    self._stop(error)
                    raise
        finally:
            if self._resources:
                log_to_mlflow(self.records)
        if self._error is not None:
            # suggested only now: nodes that finished after the error are not run again
            if isinstance(self._error, GpuNodeError):
                self._error.message += f"\nResume with: {self._command()}"  # type: ignore[misc]
            elif not isinstance(self._error, CudaRunnerError):
                self._suggest_resume(self._done)
            raise self._error

    def _loop(self) -> None:
        while True:
            with self._state:
                self._start_processes()
                node = next((one for one in self._ready() if one not in self._resources), None)
                self._here = node
                if node is None:
                    if not self._running and (self._error or not self._todo):
                        return
                    self._state.wait(timeout=1.0)
                    continue
                self._todo.remove(node)
            self._run_here(node)

    def _ready(self) -> list[Node]:
        if self._error is not None or self._is_stopping:
            return []
        return [node for node in self._todo if self._dependencies[node] <= self._done]

    def _run_here(self, node: Node) -> None:
        record = NodeRecord(node.name)
        self._add(record)
        try:
            Task(
                node=node,
                catalog=self._shared.catalog,
                hook_manager=self._shared.hooks,  # type: ignore[arg-type]
                is_async=self._shared.is_async,
                run_id=self._shared.run_id,
            ).execute()
        except Exception as error:  # anything a node may raise; raised again at the end
            record.outcome = "failed"
            self._fail(error, node)
        except BaseException:
            record.outcome = "stopped"
            raise
        else:
            record.outcome = "done"
            self._complete(node)
        finally:
            record.seconds = time.perf_counter() - self._started - record.started_seconds
            self._here = None

    def _add(self, record: NodeRecord) -> None:
        record.started_seconds = time.perf_counter() - self._started
        self.records.append(record)

    def _complete(self, node: Node) -> None:
        with self._state:
            self._done.add(node)
            kedro_logger.info("Completed node: %s", node.name)
            kedro_logger.info(
                "Completed %d out of %d tasks", len(self._done), len(self._pipeline.nodes)
            )
            self._release(node, self._shared.catalog, self._load_counts, self._pipeline)

    def _fail(self, error: Exception, node: Node) -> None:
        with self._state:
            names = [f"'{other.name}'" for other in self._running if other is not node]
            if names:
                logger.error(
                    "'%s' failed; no further node is started. Still running: %s; Ctrl-C stops them",
                    node.name,
                    ", ".join(sorted(names)),
                )
            if self._error is None:
                self._error = error
            else:
                logger.error("'%s' failed too: %s", node.name, error)
            self._state.notify_all()

    def _start_processes(self) -> None:
        for node in self._ready():
            if node in self._resources:
                placed = self._placement.try_place(node.name, self._resources[node])
                if placed is None:
                    self._give_up_if_hopeless(node)
                else:
                    self._waiting_since = None
                    self._todo.remove(node)
                    self._start(node, placed)

    def _give_up_if_hopeless(self, node: Node) -> None:
        """Stop waiting for memory that was free before the run and that no node here uses."""
        if self._running or self._here is not None:
            return
        reason = self._placement.why_never_fits(self._resources[node])
        if reason is None:
            return
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
            logger.warning("'%s' waits for memory that another program uses: %s", node.name, reason)
        elif now - self._waiting_since > MEMORY_WAIT_SECONDS:
            self._error = CudaRunnerError(
                f"node '{node.name}' cannot start: {reason}. It was free before the run, so "
                f"another program uses it now. End that program, and resume with: {self._command()}"
            )

    def _start(self, node: Node, devices: Sequence[Device]) -> None:
        for other in self._running.values():
            other.share(devices)
        supervisor = Supervisor(node, self._resources[node], devices, self._shared)
        supervisor.share([one for other in self._running.values() for one in other.devices])
        self._running[node] = supervisor
        self._add(supervisor.record)
        thread = threading.Thread(
            target=self._supervise, args=(node, supervisor), name=f"node-{node.name}"
        )
        self._threads.append(thread)
        thread.start()

    def _supervise(self, node: Node, supervisor: Supervisor) -> None:
        error: Exception | None
        try:
            error = supervisor.run()
        except Exception as unexpected:  # would be lost in this thread
            supervisor.record.outcome, error = "failed", unexpected
        with self._state:
            self._placement.release(node.name)
            del self._running[node]
            if error is None:
                try:
                    self._complete(node)
                    self._start_processes()
                except Exception as unexpected:  # would be lost in this thread
                    self._fail(unexpected, node)
            elif self._is_stopping:
                supervisor.record.outcome = "stopped"
            else:
                self._fail(error, node)
            self._state.notify_all()

    def _command(self) -> str:
        return resume_command(self._pipeline, self._done, self._shared.catalog)

    def _stop(self, error: BaseException) -> None:
        """Terminate all processes; kill them after a while or on a second signal."""
        further: list[int] = []
        with handling((signal.SIGINT, *ENDING_SIGNALS), lambda number, _: further.append(number)):
            with self._state:
                self._is_stopping = True
                stopped = list(self._running.values())
            for one in stopped:
                one.process.stop()
            if not isinstance(error, Exception):
                names = ", ".join(f"'{one.record.node}'" for one in stopped) or "nothing else"
                logger.warning(
                    "Stopping. Running: %s; unfinished outputs are removed. Resume with: %s",
                    names,
                    self._command(),
                )
            deadline = time.monotonic() + STOP_SECONDS
            is_killed = False
            # a signal may arrive before the last thread has started
            while any(thread.is_alive() for thread in self._threads):
                if not is_killed and (further or time.monotonic() > deadline):
                    is_killed = True
                    for one in stopped:
                        one.process.stop(kill=True)
                with self._state:
                    self._state.wait(timeout=0.1)


def by_urgency(pipeline: Pipeline, resources: dict[Node, Resources]) -> list[Node]:
    """Return the nodes in an order that keeps the devices busy.

    Nodes with longer chains of GPU nodes after them come first, otherwise Kedro's order is kept:
    filtering, before training and inference, precedes what only inference uses.
    """
    waiting: Counter[Node] = Counter()
    for node in reversed(pipeline.nodes):
        chain_length = waiting[node] + (node in resources)
        for parent in pipeline.node_dependencies[node]:
            waiting[parent] = max(waiting[parent], chain_length)
    return sorted(pipeline.nodes, key=lambda node: -waiting[node])
