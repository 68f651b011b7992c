"""One run: what is left to do, what is under way, what went wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from kedro.runner.task import Task

from kedro_cuda_runner.errors import CudaRunnerError, GpuNodeError
from kedro_cuda_runner.monitor import Monitor
from kedro_cuda_runner.report import NodeRecord, log_to_mlflow
from kedro_cuda_runner.resume import resume_command
from kedro_cuda_runner.signals import counting_signals, ending_on_signals
from kedro_cuda_runner.supervisor import Supervisor
from kedro_cuda_runner.terminal import logs_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from kedro_cuda_runner.devices import Device, DeviceLayer
    from kedro_cuda_runner.node_process import RunContext
    from kedro_cuda_runner.placement import Placement
    from kedro_cuda_runner.resources import Resources

logger = logging.getLogger(__name__)
# what Kedro's own runners say as well, under the same switch
kedro_logger = logging.getLogger("kedro.runner.cuda_runner")

# how long a process may take to end when asked to, before it is killed
STOP_SECONDS = 10.0
# how long to wait for memory that another program holds, though it was free before the run
MEMORY_WAIT_SECONDS = 60.0


class Scheduler:
    """Runs each node when its inputs are there and the machine has room for it.

    The calling thread runs the nodes of this process, one after another, and each node with a
    process of its own has a thread that serves it. Whoever finishes starts what has become
    possible, so that a long node here does not hold up the devices. After an error nothing is
    started any more, and what runs may finish: its work is not lost.

    Attributes:
        records: What became of the nodes, in the order of their starts.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        resources: dict[Node, Resources],
        placement: Placement,
        layer: DeviceLayer,
        shared: RunContext,
        release: Callable[..., None],
        suggest_resume: Callable[[set[Node]], None],
    ) -> None:
        """Prepare a run.

        Args:
            pipeline: What to run.
            resources: Its nodes with a process of their own, and what each needs.
            placement: The books of the devices.
            layer: The hardware.
            shared: What all nodes share.
            release: Kedro's, which releases data that no node needs any more.
            suggest_resume: Kedro's advice on how to go on, from the nodes that are done.
        """
        self.records: list[NodeRecord] = []
        self._pipeline = pipeline
        self._resources = resources
        self._placement = placement
        self._layer = layer
        self._shared = shared
        self._release = release
        self._suggest_resume = suggest_resume
        self._monitor = Monitor(layer)
        self._state = threading.Condition(threading.RLock())
        self._dependencies = pipeline.node_dependencies
        self._todo = by_urgency(pipeline, resources)
        self._done: set[Node] = set()
        self._supervisors: dict[Node, Supervisor] = {}
        self._threads: list[threading.Thread] = []
        self._here: Node | None = None
        self._error: Exception | None = None
        self._is_stopping = False
        self._waiting_since: float | None = None
        self._started = time.perf_counter()
        self._load_counts = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))

    def run(self) -> None:
        """Run all nodes; raise the first error when nothing runs any more."""
        try:
            with logs_in_turn(self._shared.terminal), ending_on_signals():
                try:
                    self._loop()
                except BaseException as error:  # Ctrl-C above all; no process outlives the run
                    self._stop(error)
                    raise
        finally:
            if self._resources:
                log_to_mlflow(self.records)
        if self._error is not None:
            # only now: what ended well after the error need not run again
            if isinstance(self._error, GpuNodeError):
                command = self._command()
                self._error.message += f"\nGo on with: {command}"  # type: ignore[misc]
            elif not isinstance(self._error, CudaRunnerError):
                self._suggest_resume(self._done)
            raise self._error

    def _loop(self) -> None:
        while True:
            with self._state:
                self._start_processes()
                node = self._next_here()
                self._here = node
                if node is None:
                    if not self._supervisors and (self._error or not self._todo):
                        return
                    self._state.wait(timeout=1.0)
                    continue
            self._run_here(node)

    def _ready(self) -> list[Node]:
        if self._error is not None or self._is_stopping:
            return []
        return [node for node in self._todo if self._dependencies[node] <= self._done]

    def _next_here(self) -> Node | None:
        node = next((node for node in self._ready() if node not in self._resources), None)
        if node is not None:
            self._todo.remove(node)
        return node

    def _run_here(self, node: Node) -> None:
        record = NodeRecord(node.name)
        self._add(record)
        started = time.perf_counter()
        try:
            Task(
                node=node,
                catalog=self._shared.catalog,
                hook_manager=self._shared.hooks,  # type: ignore[arg-type]
                is_async=self._shared.is_async,
                run_id=self._shared.run_id,
            ).execute()
        except Exception as error:  # whatever a node raises; it is raised again in the end
            record.outcome = "failed"
            self._fail(error, node)
        except BaseException:
            record.outcome = "stopped"
            raise
        else:
            record.outcome = "done"
            self._complete(node)
        finally:
            record.seconds = time.perf_counter() - started
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
            names = [f"'{other.name}'" for other in self._supervisors if other is not node]
            if names:
                logger.error(
                    "'%s' failed; no further node is started. %s may finish what is under way, "
                    "Ctrl-C stops it",
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
        """Stop waiting for memory that was free before the run and that no node here holds."""
        if self._supervisors or self._here is not None:
            return
        why = self._placement.could_ever_fit(self._resources[node])
        now = time.monotonic()
        if why is None:
            return
        if self._waiting_since is None:
            self._waiting_since = now
            logger.warning("'%s' waits for memory that another program holds: %s", node.name, why)
        elif now - self._waiting_since > MEMORY_WAIT_SECONDS:
            self._error = CudaRunnerError(
                f"node '{node.name}' cannot start: {why}. That was different before the run, so "
                f"another program has taken it. End that, and go on with: {self._command()}"
            )

    def _start(self, node: Node, devices: Sequence[Device]) -> None:
        for other in self._supervisors.values():
            other.share(devices)
        supervisor = Supervisor(
            node, self._resources[node], devices, self._layer, self._monitor, self._shared
        )
        supervisor.share([one for other in self._supervisors.values() for one in other.devices])
        self._supervisors[node] = supervisor
        self._shared.running.add(node.name)
        self._add(supervisor.record)
        thread = threading.Thread(
            target=self._see_through, args=(node, supervisor), name=f"node-{node.name}"
        )
        self._threads.append(thread)
        thread.start()

    def _see_through(self, node: Node, supervisor: Supervisor) -> None:
        error: Exception | None
        try:
            error = supervisor.run()
        except Exception as unexpected:  # in this thread nobody else would see it
            supervisor.record.outcome, error = "failed", unexpected
        with self._state:
            self._placement.release(node.name)
            del self._supervisors[node]
            self._shared.running.discard(node.name)
            if error is None:
                try:
                    self._complete(node)
                    self._start_processes()
                except Exception as unexpected:  # in this thread nobody else would see it
                    self._fail(unexpected, node)
            elif self._is_stopping:
                supervisor.record.outcome = "stopped"
            else:
                self._fail(error, node)
            self._state.notify_all()

    def _command(self) -> str:
        return resume_command(self._pipeline, self._done, self._shared.catalog)

    def _stop(self, error: BaseException) -> None:
        """End all processes: first they are asked to, then, or when asked again, killed."""
        with counting_signals() as further:
            with self._state:
                self._is_stopping = True
                stopped = list(self._supervisors.values())
            for one in stopped:
                one.stop(kill=False)
            if not isinstance(error, Exception):
                self._say_what_is_stopped(stopped)
            deadline = time.monotonic() + STOP_SECONDS
            is_killed = False
            # a signal may have come before the thread of the last one was started
            while any(thread.is_alive() for thread in self._threads):
                if not is_killed and (further or time.monotonic() > deadline):
                    is_killed = True
                    for one in stopped:
                        one.stop(kill=True)
                with self._state:
                    self._state.wait(timeout=0.1)

    def _say_what_is_stopped(self, stopped: Sequence[Supervisor]) -> None:
        names = ", ".join(f"'{one.record.node}'" for one in stopped) or "nothing else"
        logger.warning(
            "Stopping. %s was running; outputs that are not finished are removed. Go on with: %s",
            names,
            self._command(),
        )


def by_urgency(pipeline: Pipeline, resources: dict[Node, Resources]) -> list[Node]:
    """Return the nodes in an order that keeps the devices busy.

    It is Kedro's order, but the more GPU nodes wait for a node, one after another, the earlier it
    comes: filtering, which training and then inference wait for, before what only inference does.
    """
    waiting: Counter[Node] = Counter()
    for node in reversed(pipeline.nodes):
        chain_length = waiting[node] + (node in resources)
        for parent in pipeline.node_dependencies[node]:
            waiting[parent] = max(waiting[parent], chain_length)
    return sorted(pipeline.nodes, key=lambda node: -waiting[node])
