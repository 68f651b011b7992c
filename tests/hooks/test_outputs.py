"""Two runs at once, killed runs and what they leave behind."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline

from ja_instruct.datasets import AdapterDataset, JSONDataset, JSONLinesDataset
from ja_instruct.errors import InputError
from ja_instruct.hooks.outputs import OutputsHook, StaleOutputsHook

PIPELINE = pipeline(
    [
        node(lambda pairs: pairs, "pairs", "adapter", name="train"),
        node(lambda adapter: adapter, "adapter", "report", name="report"),
    ]
)
# a run of another process, which says when it has begun
OTHER_RUN = """
import sys
from pathlib import Path
from ja_instruct.hooks.outputs import RunningRun

folder, name = map(Path, sys.argv[1:3])
run = RunningRun(folder / "data", "demo")
used = {str(folder / name): name.name}
run.claim(*(({}, used) if "reading" in sys.argv else (used, {})))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def catalog(tmp_path):
    return DataCatalog(
        {
            "pairs": JSONLinesDataset(filepath=tmp_path / "pairs.jsonl"),
            "adapter": AdapterDataset(filepath=tmp_path / "models/adapter"),
            "report": JSONDataset(filepath=tmp_path / "reports/report.json"),
            "unused": JSONDataset(filepath=tmp_path / "reports/unused.json"),
            "params:sft": MemoryDataset({}),
        }
    )


class Project:
    """Calls the hooks as Kedro's session does."""

    def __init__(self, folder, catalog, *others):
        self.folder, self.catalog = folder, catalog
        self.outputs = OutputsHook()
        self.manager = _create_hook_manager()
        for hook in (*others, StaleOutputsHook(self.outputs), self.outputs):
            self.manager.register(hook)

    def parameters(self, name, only_missing=False):
        return {
            "run_id": name,
            "project_path": str(self.folder),
            "env": "test",
            "only_missing_outputs": only_missing,
        }

    def begin(self, name="a", nodes=PIPELINE, **options):
        self.manager.hook.before_pipeline_run(
            run_params=self.parameters(name, **options), pipeline=nodes, catalog=self.catalog
        )

    def end(self, name="a", error=None):
        arguments = {"run_params": self.parameters(name), "pipeline": PIPELINE}
        if error is None:
            self.manager.hook.after_pipeline_run(**arguments, catalog=self.catalog, run_result={})
        else:
            self.manager.hook.on_pipeline_error(**arguments, catalog=self.catalog, error=error)

    @property
    def records(self):
        return sorted((self.folder / "data").glob(".run*"))


@pytest.fixture
def hooked(tmp_path, catalog):
    return Project(tmp_path, catalog)


@pytest.fixture
def other_run(tmp_path):
    """Return a function that starts a process whose run writes, or reads, one path."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER_RUN, str(tmp_path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class TestTwoRuns:
    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("models/adapter", "outputs of this run (adapter)"),
            ("reports/report.json", "outputs of this run (report)"),
            ("pairs.jsonl", "inputs of this run (pairs)"),
        ],
    )
    def test_second_is_refused(self, hooked, other_run, tmp_path, name, what):
        process = other_run(name)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as caught:
            hooked.begin()
        message = caught.value.message
        assert message.startswith(f"another run is writing {what}: process ")
        assert f"process {process.pid}, started 20" in message
        assert "environment 'demo', command '-c " in message
        assert message.endswith("Wait until it has ended, or stop it, and run this command again")
        assert sorted(tmp_path.rglob("*")) == before

    def test_what_another_run_reads_is_not_written(self, hooked, other_run):
        other_run("models/adapter", "reading")
        with pytest.raises(InputError, match=r"is reading outputs of this run .adapter.: process"):
            hooked.begin()

    def test_both_may_read(self, hooked, other_run):
        other_run("pairs.jsonl", "reading")
        hooked.begin()

    def test_other_outputs_are_free(self, hooked, other_run):
        other_run("reports/unused.json")
        hooked.begin()
        assert len(hooked.records) == 2
        hooked.end()
        assert len(hooked.records) == 1

    def test_existing_output_is_free_if_it_is_not_made_again(self, hooked, other_run, tmp_path):
        (tmp_path / "models/adapter").mkdir(parents=True)
        (tmp_path / "models/adapter/ja_instruct.json").touch()
        other_run("pairs.jsonl")
        with pytest.raises(InputError, match="pairs"):
            hooked.begin(only_missing=False)
        hooked.begin(only_missing=True)
        hooked.end()

    def test_link_to_the_same_output(self, hooked, other_run, tmp_path):
        (tmp_path / "models").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        other_run("elsewhere/adapter")
        with pytest.raises(InputError, match="another run is writing outputs"):
            hooked.begin()

    def test_run_in_another_thread(self, hooked):
        thread = threading.Thread(target=hooked.begin, args=("a",))
        thread.start()
        thread.join()
        with pytest.raises(InputError, match=f"process {os.getpid()}, started"):
            hooked.begin("b")
        hooked.end("a")
        hooked.begin("b")

    def test_stale_outputs_are_reserved_once_they_are_known(self, tmp_path, catalog, other_run):
        JSONDataset(filepath=tmp_path / "reports/report.json").save({})
        (tmp_path / "models/adapter").mkdir(parents=True)
        (tmp_path / "models/adapter/ja_instruct.json").touch()

        class Freshness:
            @hook_impl(tryfirst=True)
            def before_pipeline_run(self, catalog):
                catalog.get("report").exists = lambda: False

        hooked = Project(tmp_path, catalog, Freshness())
        other_run("reports/report.json")
        with pytest.raises(InputError, match=r"another run is writing outputs of this run .report"):
            hooked.begin(only_missing=True)
        assert len(hooked.records) == 1


class TestEnd:
    def test_released_at_the_end(self, hooked):
        for error in (None, ValueError()):
            hooked.begin()
            (record,) = hooked.records
            assert json.loads(record.read_text())["environment"] == "test"
            hooked.end(error=error)
            assert hooked.records == []

    def test_released_if_another_hook_refuses_the_run(self, tmp_path, catalog):
        class Preflight:
            @hook_impl
            def before_pipeline_run(self):
                raise InputError("the run cannot start")

        hooked = Project(tmp_path, catalog, Preflight())
        with pytest.raises(InputError, match="cannot start"):
            hooked.begin()
        assert hooked.records == []

    def test_held_while_other_hooks_see_the_end(self, tmp_path, catalog):
        seen = []

        class Tracking:
            @hook_impl
            def after_pipeline_run(self):
                seen.append(len(hooked.records))

        hooked = Project(tmp_path, catalog, Tracking())
        hooked.begin()
        hooked.end()
        assert seen == [1]

    def test_interrupted_cell_of_a_notebook(self, hooked):
        """Kedro calls no hook after a KeyboardInterrupt."""
        hooked.begin("interrupted")
        hooked.begin("next")
        assert len(hooked.records) == 1
        hooked.end("next")
        assert hooked.records == []

    def test_killed_run_is_taken_over(self, hooked, other_run, caplog):
        process = other_run("models/adapter")
        process.send_signal(signal.SIGKILL)
        process.wait()
        caplog.set_level(logging.INFO)
        hooked.begin()
        (message,) = caplog.messages
        assert message.startswith("A run was killed before it ended; its outputs are free again: ")
        assert f"process {process.pid}, started" in message
        assert len(hooked.records) == 1

    @pytest.mark.parametrize("content", ["", "[1]", '{"pid": 1}'])
    def test_record_that_was_cut_off(self, hooked, tmp_path, content, caplog):
        (tmp_path / "data").mkdir()
        (tmp_path / "data/.run-1-0123abcd.json").write_text(content)
        caplog.set_level(logging.INFO)
        hooked.begin()
        assert "its outputs are free again: .run-1-0123abcd.json" in caplog.text
        assert len(hooked.records) == 1

    def test_process_id_of_another_program(self, hooked, other_run):
        process = other_run("models/adapter")
        process.kill()
        process.wait()
        (record,) = hooked.records
        content = {**json.loads(record.read_text()), "pid": os.getppid()}
        record.write_text(json.dumps(content))
        hooked.begin()

    def test_folder_that_cannot_be_written_to(self, hooked, tmp_path, caplog):
        (tmp_path / "data").touch()
        hooked.begin()
        (message,) = caplog.messages
        assert message == (
            f"{tmp_path}/data cannot be used (File exists): another run on the same outputs will "
            f"not be noticed"
        )
        hooked.end()


class TestRemains:
    def test_removed_at_the_next_start(self, hooked, tmp_path, caplog):
        names = ("models/.adapter.0123abcd.new", "reports/.unused.json.0123abcd.new")
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        caplog.set_level(logging.INFO)
        hooked.begin()
        assert caplog.messages == [
            f"Removed {tmp_path / name}, which a killed process left unfinished" for name in names
        ]
        assert not any((tmp_path / name).exists() for name in names)

    def test_old_content_is_restored_before_other_hooks_look(self, tmp_path, catalog):
        seen = []

        class Freshness:
            @hook_impl(tryfirst=True)
            def before_pipeline_run(self, catalog):
                seen.append(catalog.exists("adapter"))

        old = tmp_path / "models/.adapter.0123abcd.old"
        old.mkdir(parents=True)
        (old / "ja_instruct.json").touch()
        Project(tmp_path, catalog, Freshness()).begin()
        assert seen == [True]

    def test_what_cannot_be_removed(self, hooked, tmp_path, caplog, monkeypatch):
        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(AdapterDataset, "discard_unfinished", refuse)
        hooked.begin()
        (message,) = caplog.messages
        assert message.startswith("'adapter': what a killed run left cannot be removed: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner",
    ["SequentialRunner", "ThreadRunner", "ParallelRunner", "kedro_cuda_runner.CudaRunner"],
)
def test_run_of_the_project(invoke_kedro, finished_project, tmp_path, other_run, runner):
    """A refused run changes nothing, and a run removes remains under every runner."""
    copied = shutil.copytree(finished_project, tmp_path, symlinks=True, dirs_exist_ok=True)
    command = ("--env=test", "--pipeline=reporting", f"--runner={runner}")
    remains = copied / "data/06_models/test/.adapter.0123abcd.new"
    remains.touch()
    process = other_run("data/08_reporting/test/report.html")
    refused = invoke_kedro(*command, cwd=copied)
    assert f"process {process.pid}, started" in refused.output
    assert remains.exists()
    process.kill()
    process.wait()
    assert invoke_kedro(*command, cwd=copied).exit_code == 0
    assert not remains.exists()
