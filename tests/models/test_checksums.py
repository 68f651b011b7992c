import hashlib
import os
import time
from pathlib import Path

import pytest

from ja_instruct.errors import InputError
from ja_instruct.models import checksums
from ja_instruct.models.checksums import file_checksums, require_files


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were read."""
    names = []
    original = Path.open

    def note(path, *args, **kwargs):
        names.append(path.name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", note)
    monkeypatch.setattr(checksums, "_known", {})
    return names


@pytest.fixture
def settled(tmp_path):
    """A file that was written some time ago."""
    (tmp_path / "one").write_bytes(b"one")
    time.sleep(checksums.UNSETTLED_NS / 1e9 + 0.02)
    return tmp_path


def test_many_files_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 100)
    contents = {f"{number}.bin": os.urandom(number * 37) for number in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert file_checksums(tmp_path, contents, "here") == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }


def test_a_file_is_read_once(settled, opened):
    first = file_checksums(settled, ["one"], "first")
    assert file_checksums(settled, ["one"], "again") == first
    assert opened == ["one"]
    # moved with its directory, as a saved model is
    settled.rename(settled.with_name("moved"))
    assert file_checksums(settled.with_name("moved"), ["one"], "moved") == first
    assert opened == ["one"]


def test_a_changed_file_is_read_again_whatever_its_time_says(settled, opened):
    file_checksums(settled, ["one"], "first")
    before = (settled / "one").stat()
    (settled / "one").write_bytes(b"eno")
    os.utime(settled / "one", ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    found = file_checksums(settled, ["one"], "again")
    assert found["one"]["sha256"] == hashlib.sha256(b"eno").hexdigest()
    assert opened == ["one"]


def test_a_file_just_written_is_not_relied_on(tmp_path, opened):
    (tmp_path / "new").write_bytes(b"new")
    opened.clear()
    file_checksums(tmp_path, ["new"], "first")
    file_checksums(tmp_path, ["new"], "again")
    assert opened == ["new", "new"]


def test_links_are_followed(tmp_path):
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "link").symlink_to("blob")
    found = file_checksums(tmp_path, ["blob", "link"], "here")
    assert found["link"] == found["blob"]
    assert found["link"]["bytes"] == 7


def test_file_of_another_size_is_refused_before_any_is_read(tmp_path, opened):
    for name in ("a.safetensors", "b.json"):
        (tmp_path / name).write_bytes(b"content")
    opened.clear()
    expected = {
        "a.safetensors": {"sha256": "0" * 64},
        "b.json": {"sha256": "0" * 64, "bytes": 8},
    }
    with pytest.raises(InputError, match=r"b\.json: 7 bytes, but 8 were written; .*; make it"):
        require_files(tmp_path, expected, "here", "make it again")
    assert opened == []
