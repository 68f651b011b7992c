"""CLD2 in worker processes: the same results, even if workers die."""

import logging
import subprocess
from typing import Any

import pytest

from ja_instruct.pipelines.data_filtering import language
from ja_instruct.pipelines.data_filtering.cld2_process import detect_all
from ja_instruct.pipelines.data_filtering.language import start_detectors

JAPANESE = "日本の首都はどこですか。".encode()
TEXTS = [
    JAPANESE,
    b"",
    b"How are you doing today, my friend?",
    JAPANESE + b"\x0b",
    b"\xff\xfe",
    JAPANESE + b"It is also the largest city of the country, they say. " * 3,
    "\u2028𠮷野家".encode() + JAPANESE * 50,
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Return the processes that the test starts."""
    processes: list[subprocess.Popen[bytes]] = []
    start = language._start_process

    def remember() -> subprocess.Popen[bytes]:
        processes.append(start())
        return processes[-1]

    monkeypatch.setattr(language, "_start_process", remember)
    return processes


def test_detections() -> None:
    japanese, empty, english, *failed, mixed, long = detect_all(TEXTS, "ja", 60)
    assert (japanese, empty, long) == (None, [], None)
    assert english[0][0] == "en"
    assert [name for name, _ in mixed] == ["en", "ja"]
    assert [type(message) for message in failed] == [str, str]
    assert detect_all(TEXTS[5:6], "ja", 5) == [None]


@pytest.mark.parametrize("percent_min", [0, 5, 60, 99])
def test_workers_return_the_same_as_this_process(started: list[Any], percent_min: int) -> None:
    expected = detect_all(TEXTS, "ja", percent_min)
    with start_detectors(language.PAIRS_MIN_FOR_PROCESSES) as detect:
        assert started
        for _ in range(len(started) + 1):
            assert detect(TEXTS, "ja", percent_min) == expected
        assert detect([], "ja", percent_min) == []
    assert [process.poll() is not None for process in started] == [True] * len(started)


def test_few_pairs_start_no_worker(started: list[Any]) -> None:
    with start_detectors(language.PAIRS_MIN_FOR_PROCESSES - 1) as detect:
        assert detect(TEXTS, "ja", 60) == detect_all(TEXTS, "ja", 60)
    assert started == []


def test_dead_workers_are_replaced_by_this_process(
    started: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    expected = detect_all(TEXTS, "ja", 60)
    with start_detectors(10**6) as detect:
        for process in started:
            process.kill()
            process.wait()
        for _ in range(3 * len(started)):
            assert detect(TEXTS, "ja", 60) == expected
    assert caplog.text.count("worker died") == len(started)


def test_an_error_in_the_block_ends_the_workers(started: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt), start_detectors(10**6):
        raise KeyboardInterrupt
    assert started
    assert all(process.poll() is not None for process in started)


def test_a_worker_ends_when_its_input_is_closed(started: list[Any]) -> None:
    with start_detectors(10**6):
        for process in started:
            process.stdin.close()
            assert process.wait(timeout=30) == 0
            process.stdin = None
