"""Node functions for the runner's tests, which a node's process imports from here."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import fake_devices

logger = logging.getLogger("gpu_nodes")


def double(value):
    return value * 2


def add(*values):
    return sum(values)


def where(_=None):
    """Return the process that runs this, and the devices that it sees."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "rank": int(os.environ.get("RANK", "0")),
        "world": int(os.environ.get("WORLD_SIZE", "1")),
    }


def hold(folder, settings):
    """Hold GPU memory for a while, and return when."""
    started = time.time()
    for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
        fake_devices.allocate(folder, uuid, settings["gb"])
    time.sleep(settings["seconds"])
    return {"from": started, "to": time.time()}


def raise_value_error(_):
    logger.warning("what was seen before")
    raise ValueError("this cannot be")


def start_and_hang(folder):
    """Start a child, write both process ids, and hang."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (Path(folder) / "pids").write_text(f"{os.getpid()} {other.pid}")
    time.sleep(300)


def speak(_):
    """Log, print, draw a bar, log and print again, without a pause."""
    from tqdm import tqdm

    logger.info("first")
    print("second", file=sys.stderr, flush=True)
    for _ in tqdm(range(3), desc="third"):
        pass
    logger.info("fourth")
    print("fifth", file=sys.stderr, flush=True)
    return "printed"


def unpicklable(_):
    return lambda: None


class HoldsFunctionError(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.function = lambda: None


class TwoPartsError(Exception):
    """Can be pickled, and then not be unpickled: that calls it with one argument."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def _raise(error):
    raise error


WAYS_TO_FAIL = {
    "exception": lambda: _raise(ValueError("this cannot be")),
    "usage error": lambda: _raise(click.UsageError("line 3: unknown key 'sytem'")),
    "unpicklable": lambda: _raise(HoldsFunctionError("it holds a function")),
    "not unpicklable": lambda: _raise(TwoPartsError("two", "parts")),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "real-time signal": lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3),
    "segmentation fault": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "os._exit": lambda: os._exit(7),
    "sys.exit": lambda: sys.exit(3),
}


def hold_and_fail(folder, way):
    """Take 2.5 GB of GPU memory, for long enough to be seen, and fail in one of the ways."""
    logger.warning("what was seen before")
    print("last words", flush=True)
    hold(folder, {"gb": 2.5, "seconds": 0.45})
    if way == "out of memory":
        hold(folder, {"gb": 10_000.0})
    WAYS_TO_FAIL[way]()


hold_and_fail.gpu_resources = {"memory_gb": 3.0, "remedy": "lower the number of GB"}


def fail_at_exit(way):
    """Be done, and crash or hang on the way out."""
    import atexit

    atexit.register(*{"crash": (ctypes.string_at, 0), "hang": (time.sleep, 300)}[way])
    return "kept"


def leave_an_executor(value):
    """Leave a thread that waits for more work."""
    from concurrent.futures import ThreadPoolExecutor

    global executor
    executor = ThreadPoolExecutor(1)
    return executor.submit(double, value).result()


def pause(_):
    time.sleep(0.3)
    return "awake"


def wait_for(path):
    """Return once a file exists."""
    while not Path(path).exists():
        time.sleep(0.02)
    return "there"


def touch_and_wait_for(first, second):
    Path(first).touch()
    return wait_for(second)


def fail_when(path):
    wait_for(path)
    raise ValueError("this failed")


def print_much(_):
    """Print faster than anybody reads."""
    block = b"x" * 79 + b"\n"
    for _ in range(400):
        os.write(1, block * 800)
    return "printed"


def two_streams(_):
    print("to the output", flush=True)
    print("to the error", file=sys.stderr, flush=True)
    return "printed"


def print_bytes(_):
    os.write(1, b"\xff\xfe that was \xe6")
    time.sleep(0.1)
    os.write(1, b"\x97\xa5\n")
    return "printed"


def _meet(folder, name):
    """Wait until two processes have arrived."""
    (Path(folder) / name).mkdir(exist_ok=True)
    (Path(folder) / name / str(os.getpid())).touch()
    while len(list((Path(folder) / name).iterdir())) < 2:
        time.sleep(0.02)


def bar_and_words(word, folder):
    """Draw a bar beside another process that does, and log in between."""
    from tqdm import tqdm

    _meet(folder, "begins")
    for step in tqdm(range(20), desc=word, mininterval=0):
        time.sleep(0.02)
        if step % 5 == 0:
            logger.warning("%s logs %d", word, step)
    print(f"{word} ends", flush=True)
    # long enough for what was printed to be read while the other is there
    time.sleep(0.3)
    _meet(folder, "ends")
    return word


def start():
    return [3, 1, 2]


def scale(values, factor):
    return [value * factor for value in values]


def split(values):
    return min(values), max(values)


def mirror(values):
    """Yield one value and its opposite at a time."""
    for value in values:
        yield value, -value


def keep_nothing(_):
    return None


def keep_first(value, _):
    return value


def as_text(value):
    return f"{value!r}"


def length(*values):
    return [len(value) for value in values]


def meet(folder, settings, *_):
    """Wait for others to arrive, and return whether they did in time."""
    folder = Path(folder)
    (folder / settings["me"]).touch()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if all((folder / other).exists() for other in settings["others"]):
            return {**where(), "met": True, "thread": threading.current_thread().name}
        time.sleep(0.01)
    return {**where(), "met": False}


def tensor_and_large(_):
    import torch

    return {"weights": torch.ones(2)}, bytes(65 * 2**20)


def write_rank(_, value, settings):
    """Write a file for each process, with what it was given."""
    seen = {**where(), "value": value}
    (Path(settings["folder"]) / f"rank_{seen['rank']}").write_text(json.dumps(seen))
    return seen


def yield_ranks(late, value, settings):
    for _ in range(2):
        yield write_rank(late, value, settings)


def log_loss(value):
    import mlflow

    mlflow.log_metric("loss", value)
    return mlflow.active_run().info.run_id


def build_watched_store(store_uri, artifact_uri=None):
    """Build MLflow's store, as a function that replaces MLflow's own, and note the process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with Path(f"{store_uri.removeprefix('sqlite:///')}.builders").open("a") as builders:
        builders.write(f"{os.getpid()}\n")
    return SqlAlchemyStore(store_uri, artifact_uri or "mlruns")


def train_with_callback(value):
    """Do to MLflow what transformers' callback does, which takes seconds to import."""
    import mlflow

    is_its_own = mlflow.active_run() is None or "MLFLOW_RUN_ID" in os.environ
    if is_its_own:
        mlflow.start_run(run_name="trainer")
    mlflow.log_params({"trained_on": value}, synchronous=False)
    mlflow.log_metrics({"trained": 0.5}, step=1, synchronous=False)
    if is_its_own:
        mlflow.end_run()
    return value


def imported(_):
    return sorted({"mlflow", "torch"} & set(sys.modules))


def chunks_and_die(_):
    yield "first chunk"
    os.kill(os.getpid(), signal.SIGKILL)


def chunks_and_raise(_):
    yield "first chunk"
    raise ValueError("there is no second")


def needs_3_gb(value, parameters):
    raise AssertionError("this should not have been run")


needs_3_gb.gpu_resources = {"memory_gb": 3.0, "remedy": "lower the number of GB"}
