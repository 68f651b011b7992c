"""The command that resumes a run."""

import sys

import gpu_nodes
import pytest
from gpu_runs import catalog_of
from kedro.pipeline import node, pipeline
from kedro_datasets.json import JSONDataset

from kedro_cuda_runner.resume import resume_command, this_command

LINE = pipeline(
    [
        node(gpu_nodes.double, "raw", "clean", name="clean"),
        node(gpu_nodes.double, "clean", "table", name="count"),
        node(gpu_nodes.double, "table", "model", name="train"),
        node(gpu_nodes.double, "raw", "other", name="other"),
    ]
)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return a function from a command line and the finished nodes to the resuming command."""
    saved = {
        name: JSONDataset(filepath=str(tmp_path / name)) for name in ("clean", "model", "other")
    }
    catalog = catalog_of({"raw": 1, "table": None, **saved})

    def command(argv, *done):
        monkeypatch.setattr(sys, "argv", argv)
        return resume_command(LINE, {one for one in LINE.nodes if one.name in done}, catalog)

    return command


@pytest.mark.parametrize(
    ("done", "start"),
    [
        ([], ""),
        # the input of train was in memory
        (["clean", "count", "other"], " --from-nodes=count"),
        (["clean"], " --from-nodes=count,other"),
    ],
    ids=["nothing is done", "nearest node whose inputs are saved", "several"],
)
def test_start(command, done, start):
    assert command(["kedro", "run", "--env=demo"], *done) == f"kedro run --env=demo{start}"


class TestCommandLines:
    @pytest.mark.parametrize(
        "program",
        ["kedro", "/usr/local/bin/kedro", "python -m kedro"],
        ids=["by name", "by path", "as a module"],
    )
    def test_kedro(self, command, program):
        argv = [program, "run", "--env=demo", "--params", "sft.epochs=2,sft.name=a b"]
        assert command(argv, "clean") == (
            "kedro run --env=demo --params 'sft.epochs=2,sft.name=a b' --from-nodes=count,other"
        )

    def test_packaged_project(self, command, monkeypatch):
        monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", "my_project")
        argv = ["/src/my_project/__main__.py", "--env=demo"]
        assert command(argv, "clean") == "kedro run --env=demo --from-nodes=count,other"

    @pytest.mark.parametrize(
        "argv",
        [
            ["/usr/bin/pytest", "-q", "tests"],
            ["-c"],
            ["/lib/ipykernel_launcher.py", "-f", "run"],
            ["kedro", "ipython"],
        ],
        ids=["pytest", "python -c", "a notebook", "another command of kedro"],
    )
    def test_anything_else(self, command, argv):
        assert command(argv, "clean") == "kedro run --from-nodes=count,other"

    @pytest.mark.parametrize(
        "start",
        [["--from-nodes=clean"], ["--from-nodes", "clean"], ["--from-inputs", "raw"]],
        ids=" ".join,
    )
    def test_an_earlier_start_is_replaced(self, command, start):
        argv = ["kedro", "run", *start, "--to-nodes=train,other", "--async"]
        expected = "kedro run --to-nodes=train,other --async --from-nodes=count,other"
        assert command(argv, "clean") == expected


@pytest.mark.parametrize("given", [["--env=demo"], ["--env=demo", "--only-missing-outputs"]])
def test_this_command_with_an_option(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kedro", "run", *given])
    expected = "kedro run --env=demo --only-missing-outputs"
    assert this_command("--only-missing-outputs") == expected
