"""The output of nodes is complete, in order, and never in another's unfinished line."""

import io
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from gpu_runs import screen_lines, wait_until
from hypothesis import given
from hypothesis import strategies as st

from kedro_cuda_runner import failures, terminal
from kedro_cuda_runner.failures import LastLines
from kedro_cuda_runner.terminal import Output, Terminal, logs_on_own_lines


class Screen(io.StringIO):
    """A stream that calls itself a terminal, and knows what is seen on it."""

    def isatty(self):
        return True

    def lines(self):
        return screen_lines(self.getvalue())


@dataclass
class FakeOutput:
    target: io.StringIO
    at_line_start: bool = True
    is_bar: bool = False
    columns: int | None = None
    place: object = field(init=False)

    def __post_init__(self):
        self.place = id(self.target)

    def width(self):
        return self.columns


class TestTerminal:
    @pytest.mark.parametrize(
        ("kind", "writes", "expected"),
        [
            (Screen, ["[1] half", "[2] whole\n", "[1] rest\n"], "[1] half\n[2] whole\n[1] rest\n"),
            (Screen, ["[1] \rbar 1", "[2] whole\n", "[1] \rbar 2"], "[2] whole\n[1] bar 2"),
            (io.StringIO, ["\rbar 1", "whole\n"], "\rbar 1\nwhole\n"),
        ],
        ids=["line of another is ended", "bar of another is cleared", "bar in a file is kept"],
    )
    def test_unfinished_lines(self, kind, writes, expected):
        target, terminal = kind(), Terminal()
        outputs = [FakeOutput(target), FakeOutput(target)]
        for number, text in enumerate(writes):
            prefix, bracket, rest = text.rpartition("] ")
            terminal.write(outputs[number % 2], rest, prefix + bracket)
        shown = "\n".join(target.lines()) if kind is Screen else target.getvalue()
        assert shown == expected

    def test_streams_that_lead_elsewhere_stay_apart(self):
        terminal = Terminal()
        out, error = FakeOutput(io.StringIO()), FakeOutput(Screen())
        terminal.write(out, "half", "")
        terminal.write(error, "\rbar", "")
        terminal.write(out, " and half\n", "")
        assert out.target.getvalue() == "half and half\n"
        assert error.target.getvalue() == "\rbar"

    def test_streams_that_lead_to_one_file_are_known(self, tmp_path):
        with (tmp_path / "file").open("w") as one, (tmp_path / "file").open("a") as other:
            assert terminal._place(one) == terminal._place(other)
            with (tmp_path / "else").open("w") as third:
                assert terminal._place(one) != terminal._place(third)
        assert terminal._place(io.StringIO()) != terminal._place(sys.__stdout__)

    def test_bar_with_a_prefix_fits_the_terminal(self):
        screen, terminal = Screen(), Terminal()
        output = FakeOutput(screen, columns=12)
        terminal.write(output, "\r学習 12345678", "[one] ")
        assert screen.lines() == ["[one] 学習 1"]
        terminal.write(output, "\r学習 12345678\nwhole lines are not cut\n", "[one] ")
        assert screen.lines() == ["[one] 学習 1", "[one] whole lines are not cut", ""]

    @pytest.mark.parametrize("bar", ["\r123456", "\r\x1b[32m1234567\x1b[0m"])
    def test_bars_that_fit_or_are_coloured_are_not_cut(self, bar):
        screen, terminal = Screen(), Terminal()
        terminal.write(FakeOutput(screen, columns=12), bar, "[one] ")
        assert screen.getvalue() == "\r[one] " + bar[1:]

    def test_stream_without_a_character(self):
        file, terminal = io.TextIOWrapper(io.BytesIO(), "ascii"), Terminal()
        terminal.write(FakeOutput(file), "plain\nbar █\n", "")
        assert file.buffer.getvalue() == b"plain\nbar ?\n"

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([0, 1]),
                st.lists(st.sampled_from(["x", "xx", "\n", "\r", "\r\n"]), max_size=5),
            ),
            max_size=20,
        ),
        st.sampled_from([Screen, io.StringIO]),
    )
    def test_no_line_has_two_writers(self, writes, kind):
        target, terminal = kind(), Terminal()
        outputs = [FakeOutput(target), FakeOutput(target)]
        for who, pieces in writes:
            text = "".join(pieces).replace("x", "ab"[who])
            terminal.write(outputs[who], text, f"[{'ab'[who]}]")
        for line in screen_lines(target.getvalue()):
            assert not {"a", "b"} <= set(line)
            assert not line or line.startswith("[")
        if kind is io.StringIO:
            written = target.getvalue()
            for who, letter in enumerate("ab"):
                sent = "".join("".join(pieces) for one, pieces in writes if one == who).count("x")
                assert written.count(letter) - written.count(f"[{letter}]") == sent


@contextmanager
def only_handler(handler):
    """Let it be the root logger's only one; pytest's own come and go with each phase of a test."""
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [handler]
    yield handler.stream
    root.handlers[:] = before


class TestLogsOnOwnLines:
    @pytest.fixture
    def handler(self):
        return logging.StreamHandler(Screen())

    def test_log_line_starts_on_its_own_line(self, handler):
        terminal = Terminal()
        with only_handler(handler) as screen, logs_on_own_lines(terminal):
            terminal.write(FakeOutput(screen), "\rbar 1", "")
            logging.warning("a warning")
        assert screen.lines() == ["a warning", ""]

    def test_record_that_is_not_printed_leaves_the_bar(self, handler):
        terminal = Terminal()
        handler.setLevel(logging.ERROR)
        with only_handler(handler) as screen, logs_on_own_lines(terminal):
            terminal.write(FakeOutput(screen), "\rbar 1", "")
            logging.warning("a warning")
        assert screen.lines() == ["bar 1"]

    def test_handlers_are_as_before(self, handler):
        with only_handler(handler):
            with pytest.raises(KeyboardInterrupt), logs_on_own_lines(Terminal()):
                assert "handle" in vars(handler)
                raise KeyboardInterrupt
            assert "handle" not in vars(handler)

    def test_log_lines_of_one_thread_and_bar_of_another(self, handler):
        terminal = Terminal()
        output = FakeOutput(handler.stream)
        over = threading.Event()

        def draw():
            while not over.is_set():
                terminal.write(output, "\rbar", "")

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        drawing = threading.Thread(target=draw)
        drawing.start()
        with only_handler(handler) as screen, logs_on_own_lines(terminal):
            for _ in range(300):
                logging.warning("log")
        over.set()
        drawing.join()
        sys.setswitchinterval(before)
        with terminal.line_start():
            assert set(screen.lines()) == {"log", ""}


class TestLastLines:
    def lines(self, *texts):
        last = LastLines()
        for text in texts:
            last.add(text)
        return list(last)

    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            (["one\ntw", "o\n\nthr", "ee"], ["one", "two", "three"]),
            # the last state of a bar, also of one that is wiped
            (["\r 1%", "\r 2%", "\r"], [" 2%"]),
            (["\r 1%\r 2%\nafter"], [" 2%", "after"]),
            (["\r 1%\r 2%\r\n"], [" 2%"]),
            (["\r 99%", "\r    ", "\r"], [" 99%"]),
        ],
    )
    def test_lines(self, texts, expected):
        assert self.lines(*texts) == expected

    def test_a_few_are_kept(self):
        numbers = [str(number) for number in range(failures.KEPT_LINES + 2)]
        assert self.lines("\n".join([*numbers, ""])) == numbers[2:]

    def test_bar_of_days_stays_small(self):
        last = LastLines()
        started = time.monotonic()
        for step in range(50_000):
            last.add(f"\r{step} steps " + "█" * 60)
        assert time.monotonic() - started < 5.0
        assert len(last._rest) < 200
        assert list(last) == ["49999 steps " + "█" * 60]

    def test_line_of_millions_is_cut(self):
        [line] = self.lines(*["." * 1000] * 50)
        assert 1000 <= len(line) <= failures.KEPT_CHARACTERS

    @given(st.lists(st.text(alphabet="ab \r\n", max_size=8), max_size=12))
    def test_pieces_do_not_matter(self, texts):
        assert self.lines(*texts) == self.lines("".join(texts))

    def test_crash_keeps_its_beginning(self):
        frames = [f'  File "deep.py", line {number} in f' for number in range(40)]
        other = "Thread 0x00007f0000000001 (most recent call first):"
        current = "Current thread 0x00007f0000000002 (most recent call first):"
        cause = "Fatal Python error: Segmentation fault"
        printed = ["before", cause, "", other, *frames, "", current, *frames, "  ..."]
        printed += ["", "Extension modules: numpy (total: 1)", "after"]
        assert self.lines("\n".join(printed)) == ["before", cause, current, *frames[:6], "after"]

    def test_frames_of_ordinary_tracebacks_are_kept(self):
        printed = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "Error"]
        assert self.lines("\n".join(printed)) == printed


class TestOutput:
    @pytest.fixture
    def output(self, tmp_path):
        with (tmp_path / "out").open("w") as target:
            one = Output(target, LastLines())
            yield one
            one.close()

    def test_end_of_output(self, output):
        assert output.read() == ""
        os.write(output.child_end, b"last")
        os.close(output.child_end)
        assert output.read() == "last"
        assert output.read() is None

    def test_endless_output_does_not_block_others(self, output):
        printer = subprocess.Popen(["yes"], stdout=output.child_end)
        os.close(output.child_end)
        try:
            assert wait_until(lambda: len(output.read()) > 2)
            for _ in range(20):
                assert len(output.read()) <= terminal.READ_BYTES * terminal.READS_AT_ONCE
        finally:
            printer.kill()
            printer.wait()
