"""Curves go where ``report_to`` says; the reporters' packages are replaced by recording ones."""

import re
import sys
from types import SimpleNamespace

import pytest

WANDB = """
run, calls, config = None, [], {}

class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)

class Run:
    id, name, url, summary = "1", "n", "u", {}

    def _label(self, code):
        pass

config = Config()

def init(**kwargs):
    global run
    calls.append(("init", kwargs))
    run = Run()

def log(values, **kwargs):
    calls.append(("log", values))

def define_metric(*args, **kwargs):
    pass
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A function that makes packages importable."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / "packages" / name.replace("__", "/") / "__init__.py"
            path.parent.mkdir(parents=True)
            path.write_text(content)
            monkeypatch.delitem(sys.modules, name.replace("__", "."), raising=False)
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    yield write
    for name in [one for one in sys.modules if one.partition(".")[0] in ("wandb", "tensorboard")]:
        del sys.modules[name]


def losses(logged):
    return [values["train/loss"] for values in logged if "train/loss" in values]


def test_wandb(train_tiny, packages):
    packages(
        wandb=WANDB,
        wandb__sdk="",
        wandb__sdk__lib="",
        wandb__sdk__lib__config_util="class ConfigError(Exception): pass",
    )
    # TRL, which imported wandb or not, writes a card beside each checkpoint
    trained = train_tiny(report_to="wandb", save_strategy="no")
    import wandb

    (begun,) = [values for name, values in wandb.calls if name == "init"]
    assert re.fullmatch("sft [0-9a-f]{12}", begun["name"])
    assert losses([values for name, values in wandb.calls if name == "log"]) == list(
        trained.curve("loss").values()
    )


def test_tensorboard(train_tiny, packages, monkeypatch, tmp_path):
    packages(tensorboard="")
    written = []

    class SummaryWriter:
        def __init__(self, log_dir):
            self.log_dir = log_dir

        def add_scalar(self, name, value, step):
            written.append((self.log_dir, {name: value}))

        def add_text(self, *args):
            pass

        def flush(self):
            pass

        close = flush

    module = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trained = train_tiny(report_to=["tensorboard"], save_strategy="epoch")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert losses([values for _, values in written]) == list(trained.curve("loss").values())
    assert {log_dir.startswith(f"{folder}/runs/") for log_dir, _ in written} == {True}


def test_none(train_tiny):
    assert train_tiny(report_to="none").curve("loss")
