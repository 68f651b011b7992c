"""The table of a run is printed last, with what was measured."""

import re

import gpu_nodes
import pytest
from fake_devices import FakeDevices
from gpu_runs import catalog_of, gpu, manager_of
from kedro.framework.hooks import hook_impl
from kedro.pipeline import node, pipeline

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import GpuNodeError

GOOD = (
    gpu(gpu_nodes.hold, ["folder", "params:held"], "held", "hold"),
    node(gpu_nodes.double, "x", "doubled", name="double"),
)
BAD = (gpu(gpu_nodes.raise_value_error, "x", name="fail"),)


class PrintingHooks:
    """Prints at the end of a run, as late as it can."""

    @hook_impl(trylast=True)
    def after_pipeline_run(self):
        print("the report is there")

    @hook_impl(trylast=True)
    def on_pipeline_error(self):
        print("the report is not there")


@pytest.fixture
def show(tmp_path, capsys, monkeypatch):
    """Return a function that runs nodes as a session does, and returns what was printed."""
    monkeypatch.setenv("COLUMNS", "200")
    layer = FakeDevices(tmp_path, count=1)
    held = {"gb": 1, "seconds": 0.3, "gpu": {"memory_gb": 2.5}}
    catalog = catalog_of({"x": 1, "folder": str(tmp_path), "params:held": held})

    def run(nodes, manager=None):
        line = pipeline(nodes)
        arguments = {"run_params": {}, "pipeline": line, "catalog": catalog}
        try:
            result = CudaRunner(layer=layer).run(line, catalog, manager)
        except GpuNodeError as error:
            if manager is not None:
                manager.hook.on_pipeline_error(error=error, **arguments)
        else:
            if manager is not None:
                manager.hook.after_pipeline_run(run_result=result, **arguments)
        return capsys.readouterr().out

    return run


def row(shown, name):
    """Return the cells of a node's row."""
    (line,) = re.findall(rf"^ *{name} .*$", shown, re.MULTILINE)
    return re.split(r" {2,}", line.strip())


class TestTable:
    def test_table_is_printed_after_other_hooks(self, show):
        shown = show(GOOD, manager_of(PrintingHooks()))
        assert shown.index("the report is there") < shown.index("estimate")
        assert shown.count("estimate") == 1

    def test_measured_beside_estimated(self, show):
        shown = show(GOOD)
        name, device, seconds, *measured = row(shown, "hold")
        assert (name, device) == ("hold", "cuda:0")
        assert float(seconds.removesuffix(" s")) >= 0.3
        assert measured == ["1.0 GB", "2.5 GB", "50 %"]
        assert row(shown, "double")[:2] == ["double", "CPU"]

    def test_failed_run(self, show):
        shown = show(BAD, manager_of(PrintingHooks()))
        assert shown.index("the report is not there") < shown.index("estimate")
        for one in (shown, show(BAD)):  # with and without hooks
            assert row(one, "fail")[2].startswith("failed after")

    def test_each_run_of_a_session(self, show):
        manager = manager_of(PrintingHooks())
        for _ in range(2):
            assert show(GOOD, manager).count("estimate") == 1

    def test_no_table_without_gpu_nodes(self, show):
        assert "estimate" not in show(())
