"""The command that goes on where a run ended."""

import sys

import gpu_nodes
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro_datasets.json import JSONDataset

from kedro_cuda_runner.resume import resume_command

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
    """Return a function from a command line and the nodes that are done to what goes on."""
    catalog = DataCatalog(
        {
            "raw": MemoryDataset(1),
            "clean": JSONDataset(filepath=str(tmp_path / "clean.json")),
            "table": MemoryDataset(),
            "model": JSONDataset(filepath=str(tmp_path / "model.json")),
            "other": JSONDataset(filepath=str(tmp_path / "other.json")),
        }
    )

    def command(argv, *done):
        monkeypatch.setattr(sys, "argv", argv)
        return resume_command(LINE, {one for one in LINE.nodes if one.name in done}, catalog)

    return command


class TestBeginning:
    def test_nothing_is_done(self, command):
        assert command(["kedro", "run", "--env=demo"]) == "kedro run --env=demo"

    def test_the_nearest_node_whose_inputs_are_saved(self, command):
        # what train takes is in memory, and gone
        assert (
            command(["kedro", "run"], "clean", "count", "other") == "kedro run --from-nodes=count"
        )

    def test_several(self, command):
        assert command(["kedro", "run"], "clean") == "kedro run --from-nodes=count,other"


class TestCommandLines:
    @pytest.mark.parametrize(
        "program",
        ["kedro", "/usr/local/bin/kedro", "/lib/python3.11/site-packages/kedro/__main__.py"],
        ids=["by name", "by path", "python -m kedro"],
    )
    def test_kedro(self, command, program):
        argv = [program, "run", "--env=demo", "--params", "sft.epochs=2,sft.name=a b"]
        assert command(argv, "clean") == (
            "kedro run --env=demo --params 'sft.epochs=2,sft.name=a b' --from-nodes=count,other"
        )

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
        "beginning",
        [["--from-nodes=clean"], ["--from-nodes", "clean"], ["--from-inputs", "raw"]],
        ids=" ".join,
    )
    def test_an_earlier_beginning_is_replaced(self, command, beginning):
        argv = ["kedro", "run", *beginning, "--to-nodes=train,other", "--async"]
        expected = "kedro run --to-nodes=train,other --async --from-nodes=count,other"
        assert command(argv, "clean") == expected
