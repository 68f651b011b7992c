import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from ja_instruct.tables.answer_store import AnswerStore

ANSWER = {"text": "東京です。\n", "new_tokens": 4, "finished": True}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.jsonl"


def test_without_a_file_it_holds_nothing_and_makes_none(path):
    store = AnswerStore(path)
    assert store.get("a") is None
    assert len(store) == 0
    assert not path.parent.exists()


def test_what_is_appended_is_there_at_once_and_later(path):
    store = AnswerStore(path)
    store.append("a", ANSWER)
    for one in (store, AnswerStore(path)):
        assert one.get("a") == ANSWER
        assert len(one) == 1
    assert path.read_text("utf-8").count("東京です。") == 1


def test_every_answer_is_flushed_to_the_disk(path, monkeypatch):
    synced = []
    fsync = os.fsync

    def watch(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        # what is synced is what is in the file by then
        assert path.read_bytes().endswith(b"\n")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    store = AnswerStore(path)
    store.append("a", ANSWER)
    store.append("b", ANSWER)
    assert synced == [str(path), str(path.parent), str(path)]


def lines(*keys):
    return [json.dumps({"key": key, "answer": ANSWER}).encode() for key in keys]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_torn_last_line_is_passed_over_and_does_not_swallow_the_next(path, cut, caplog):
    path.parent.mkdir()
    first, second = lines("a", "b")
    path.write_bytes(first + b"\n" + second[:cut])
    store = AnswerStore(path)
    assert (store.get("a"), store.get("b")) == (ANSWER, None)
    assert f"{path}: skipping line(s) 2, " in caplog.text
    store.append("b", ANSWER)
    store.append("c", ANSWER)
    again = AnswerStore(path)
    assert [again.get(key) for key in "abc"] == [ANSWER] * 3


def test_whole_last_line_without_its_line_break_counts(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"\n".join(lines("a", "b")))
    store = AnswerStore(path)
    store.append("c", ANSWER)
    assert [AnswerStore(path).get(key) for key in "abc"] == [ANSWER] * 3
    assert not caplog.records


@pytest.mark.parametrize(
    "line", [b"[]", b"\xff", b"{}", b'{"key": 1, "answer": {}}', b'{"key": "b", "answer": 3}']
)
def test_other_lines_are_passed_over(path, line, caplog):
    path.parent.mkdir()
    path.write_bytes(b"\n".join([line, *lines("a")]))
    assert len(AnswerStore(path)) == 1
    assert "line(s) 1, " in caplog.text


def test_characters_that_are_none_do_not_break_the_file(path):
    AnswerStore(path).append("a", {"text": "\ud800"})
    assert AnswerStore(path).get("a") == {"text": "\ud800"}


def append_many(path, name):
    store = AnswerStore(path)
    for number in range(50):
        store.append(f"{name}{number}", {"text": name * 5000})


def test_processes_append_side_by_side(path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    store = AnswerStore(path)
    assert len(store) == 150
    assert all(store.get(f"{name}49") == {"text": name * 5000} for name in "abc")


def test_travels_to_another_process(path):
    store = AnswerStore(path)
    store.append("a", ANSWER)
    there = pickle.loads(pickle.dumps(store))
    there.append("b", ANSWER)
    assert AnswerStore(path).get("b") == ANSWER
