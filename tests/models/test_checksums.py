import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from ja_instruct.errors import InputError
from ja_instruct.models import checksums
from ja_instruct.models.checksums import file_checksums, require_files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of cached digests, which here holds small files too."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(checksums, "CACHED_BYTES_MIN", 0)
    return tmp_path / "hub/ja_instruct/checksums.json"


@pytest.fixture
def opened(monkeypatch):
    """The names of the hashed files."""
    names = []
    original = Path.open

    def note(path, mode="r", *args, **kwargs):
        if mode == "rb":
            names.append(path.name)
        return original(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", note)
    return names


@pytest.fixture
def settled(tmp_path):
    """A directory with a file that was written some time ago."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "one").write_bytes(b"one")
    time.sleep(checksums.UNSETTLED_NS / 1e9 + 0.02)
    return path


def test_many_files_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 100)
    contents = {f"{number}.bin": os.urandom(number * 37) for number in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert file_checksums(tmp_path, contents, "here") == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }


def test_a_file_is_hashed_once_for_all_processes(cache, settled, opened):
    first = file_checksums(settled, ["one"], "first")
    assert file_checksums(settled, ["one"], "again") == first
    # a saved model is renamed from its temporary directory
    moved = settled.rename(settled.with_name("moved"))
    assert file_checksums(moved, ["one"], "moved") == first
    assert opened == ["one"]
    assert first["one"]["sha256"] in cache.read_text("utf-8")


def test_a_changed_file_is_hashed_again_even_with_its_old_time(cache, settled, opened):
    file_checksums(settled, ["one"], "first")
    before = (settled / "one").stat()
    (settled / "one").write_bytes(b"eno")
    os.utime(settled / "one", ns=(before.st_atime_ns, before.st_mtime_ns))
    found = file_checksums(settled, ["one"], "again")
    assert found["one"]["sha256"] == hashlib.sha256(b"eno").hexdigest()
    assert opened == ["one", "one"]


def test_files_that_are_new_or_small_are_not_cached(cache, settled, tmp_path, opened, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    file_checksums(tmp_path, ["new"], "first")
    monkeypatch.setattr(checksums, "CACHED_BYTES_MIN", 4)
    file_checksums(settled, ["one"], "first")
    assert not cache.exists()
    opened.clear()
    file_checksums(tmp_path, ["new"], "again")
    assert opened == ["new"]


def test_digests_of_yesterday_are_dropped(cache, settled, opened):
    file_checksums(settled, ["one"], "first")
    entries = json.loads(cache.read_text("utf-8"))
    old = {key: (digest, at - 25 * 3600) for key, (digest, at) in entries.items()}
    cache.write_text(json.dumps({**old, "gone": ("0" * 64, 0)}), "utf-8")
    file_checksums(settled, ["one"], "again")
    assert opened == ["one", "one"]
    assert len(json.loads(cache.read_text("utf-8"))) == 1


@pytest.mark.parametrize("content", ["", "{"])
def test_unreadable_cache_is_ignored(cache, settled, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content, "utf-8")
    found = file_checksums(settled, ["one"], "here")
    assert found["one"]["sha256"] == hashlib.sha256(b"one").hexdigest()


def test_cache_that_cannot_be_written_is_ignored(cache, settled, opened):
    cache.parent.parent.write_text("not a directory")
    for _ in range(2):
        file_checksums(settled, ["one"], "here")
    assert opened == ["one", "one"]


def test_links_are_followed(tmp_path):
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "link").symlink_to("blob")
    found = file_checksums(tmp_path, ["blob", "link"], "here")
    assert found["link"] == found["blob"]
    assert found["link"]["bytes"] == 7


def test_file_of_another_size_is_refused_before_any_is_hashed(tmp_path, opened):
    for name in ("a.safetensors", "b.json"):
        (tmp_path / name).write_bytes(b"content")
    opened.clear()
    expected = {
        "a.safetensors": {"sha256": "0" * 64, "bytes": 7},
        "b.json": {"sha256": "0" * 64, "bytes": 8},
    }
    with pytest.raises(InputError, match=r"b\.json: 7 bytes, but 8 were written; .*; make it"):
        require_files(tmp_path, expected, "here", "make it again")
    assert opened == []
