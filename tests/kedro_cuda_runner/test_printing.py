"""The output of a run with several processes, on a pipe and on a real terminal."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import gpu_nodes
from fake_devices import FakeDevices
from gpu_runs import gpu, run, screen_lines

from kedro_cuda_runner import node_process

SCRIPT = Path(__file__).resolve().with_name("run_that_prints.py")
COLUMNS = 90
SPOKEN = ["first", "second", "third: 100%", "fourth", "fifth"]
LOGGING = """
version: 1
handlers: {console: {class: logging.StreamHandler}}
root: {handlers: [console], level: INFO}
"""


def run_one(function, tmp_path, names=("speak",), data="x"):
    nodes = [gpu(function, "x", f"y{name}", name) for name in names]
    return run(nodes, {"x": data}, FakeDevices(tmp_path / "devices"))


class TestPipe:
    """Runs whose output is a pipe."""

    def test_order(self, tmp_path, capfd, caplog, monkeypatch):
        """It is kept even when the runner is late and finds several messages at once."""
        real_wait = node_process.wait

        def late_wait(*args, **kwargs):
            time.sleep(0.1)
            return real_wait(*args, **kwargs)

        monkeypatch.setattr(node_process, "wait", late_wait)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        monkeypatch.setattr(logging.getLogger("gpu_nodes"), "handlers", [handler])
        caplog.set_level(logging.INFO, logger="gpu_nodes")
        run_one(gpu_nodes.speak, tmp_path)
        assert re.findall("|".join(SPOKEN), capfd.readouterr().err) == SPOKEN

    def test_streams_stay_apart(self, tmp_path, capfd):
        run_one(gpu_nodes.two_streams, tmp_path)
        output = capfd.readouterr()
        assert "to the output\n" in output.out
        assert "to the error" not in output.out
        assert "to the error\n" in output.err
        assert "to the output" not in output.err

    def test_undecodable_bytes(self, tmp_path, capfd):
        run_one(gpu_nodes.print_bytes, tmp_path)
        assert "\ufffd\ufffd that was 日\n" in capfd.readouterr().out

    def test_kedro_does_not_log_its_configuration_again(self, tmp_path, capfd, monkeypatch):
        path = tmp_path / "logging.yml"
        path.write_text(LOGGING)
        monkeypatch.setenv("KEDRO_LOGGING_CONFIG", str(path))
        run_one(gpu_nodes.two_streams, tmp_path)
        output = capfd.readouterr()
        assert "as logging configuration" not in output.out + output.err

    def test_much(self, tmp_path, capfd):
        run_one(gpu_nodes.print_much, tmp_path)
        assert capfd.readouterr().out.count("x" * 79 + "\n") == 400 * 800


class TestRealTerminal:
    """A script on a pseudo-terminal, and the bytes that come out of it."""

    def run(self, way, tmp_path, environment, columns=COLUMNS, stdout=None):
        end, child_end = pty.openpty()
        termios.tcsetwinsize(child_end, (30, columns))
        environment = {name: one for name, one in environment.items() if name != "COLUMNS"}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), way],
            env=environment,
            stdin=child_end,
            stdout=stdout or child_end,
            stderr=child_end,
            start_new_session=True,
        )
        os.close(child_end)
        output = b""
        try:
            while data := os.read(end, 65536):
                output += data
        except OSError:  # everybody has left the terminal
            pass
        os.close(end)
        assert process.wait(timeout=10) == 0, output.decode()
        # the terminal's own line discipline ends lines like this
        return output.decode().replace("\r\n", "\n")

    def test_bar_is_as_wide_as_the_terminal(self, tmp_path, subprocess_environment):
        output = self.run("speak", tmp_path, subprocess_environment)
        bars = re.findall(r"\r(third: [^\r\n]*)", output)
        assert bars[-1].startswith("third: 100%|███")
        assert {len(bar) for bar in bars} == {COLUMNS - 1}, "tqdm leaves a column free"
        places = [output.index(word) for word in SPOKEN]
        assert places == sorted(places)

    def test_two_at_once(self, tmp_path, subprocess_environment):
        output = self.run("two", tmp_path, subprocess_environment)
        lines = screen_lines(output)
        assert "[ham] ham ends" in lines
        assert "[eggs] eggs ends" in lines
        for line in lines:
            assert not ("ham" in line and "eggs" in line), line
            if "%|" in line:
                assert " logs " not in line, line
                assert len(line) <= COLUMNS, line

    def test_only_one_is_redirected(self, tmp_path, subprocess_environment):
        with (tmp_path / "file").open("w") as file:
            output = self.run("streams", tmp_path, subprocess_environment, stdout=file)
        assert "to the error\n" in output
        assert "to the output" not in output
        assert "to the output\n" in (tmp_path / "file").read_text()
        assert "to the error" not in (tmp_path / "file").read_text()
