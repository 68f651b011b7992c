"""Fingerprints of values, files, directories and datasets."""

import json
import os

import pytest
from freshness_datasets import FingerprintedDataset, InPlaceDataset, ServerDataset
from kedro.io import CachedDataset, MemoryDataset, Version
from kedro_datasets.json import JSONDataset
from kedro_datasets.partitions import PartitionedDataset

from kedro_freshness import fingerprints
from kedro_freshness.fingerprints import (
    fingerprint_dataset,
    fingerprint_path,
    fingerprint_value,
    has_path,
    location_of,
)

MIB = 1 << 20


@pytest.fixture
def hashed(monkeypatch):
    """Return the names of files that are hashed, in a list."""
    found, hashes = [], []
    xxh3, original = fingerprints.xxhash.xxh3_128, fingerprints._DigestCache.digest

    def digest(self, name):
        count = len(hashes)
        result = original(self, name)
        if len(hashes) > count:
            found.append(name or self._path.name)
        return result

    def counted():
        hashes.append(1)
        return xxh3()

    monkeypatch.setattr(fingerprints.xxhash, "xxh3_128", counted)
    monkeypatch.setattr(fingerprints._DigestCache, "digest", digest)
    monkeypatch.setattr(fingerprints, "THREADS", 1)
    return found


def write(path, size, byte=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(byte * size)
    return path


def test_file(tmp_path):
    path = write(tmp_path / "a", 0)
    assert fingerprint_path(path) == "xxh3:99aa06d3014798d86001c324468d497f"
    other = fingerprint_path(write(tmp_path / "b", 1))
    assert other == fingerprint_path(write(tmp_path / "c", 1)) != fingerprint_path(path)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError):
        fingerprint_path(tmp_path / "a")


def test_small_files_leave_nothing_beside_them(tmp_path):
    fingerprint_path(write(tmp_path / "a", MIB))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class TestDirectory:
    """A directory counts by the names and contents of its files."""

    @pytest.fixture
    def directory(self, tmp_path):
        write(tmp_path / "d/a", 1)
        write(tmp_path / "d/sub/b", 2)
        return tmp_path / "d"

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: (path / "a").write_text("y"),
            lambda path: (path / "a").rename(path / "c"),
            lambda path: (path / "sub/b").rename(path / "b"),
            lambda path: (path / "sub/b").unlink(),
            lambda path: (path / ".hidden").touch(),
        ],
    )
    def test_change(self, directory, change):
        before = fingerprint_path(directory)
        change(directory)
        assert fingerprint_path(directory) != before

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: os.utime(path / "a", (0, 0)),
            lambda path: (path / "a").chmod(0o600),
            lambda path: (path / "empty").mkdir(),
            lambda path: write(path / ".freshness/a.json", 5),
            lambda path: write(path / "sub/.freshness/a.json", 5),
        ],
    )
    def test_what_does_not_count(self, directory, change):
        before = fingerprint_path(directory)
        change(directory)
        assert fingerprint_path(directory) == before

    def test_moved(self, directory):
        before = fingerprint_path(directory)
        assert fingerprint_path(directory.rename(directory.with_name("e"))) == before

    def test_links_are_followed(self, directory, tmp_path):
        before = fingerprint_path(directory)
        (directory / "a").rename(tmp_path / "elsewhere")
        (directory / "a").symlink_to(tmp_path / "elsewhere")
        (directory / "sub").rename(tmp_path / "other")
        (directory / "sub").symlink_to(tmp_path / "other")
        assert fingerprint_path(directory) == before
        (tmp_path / "link").symlink_to(directory)
        assert fingerprint_path(tmp_path / "link") == before

    def test_circles_of_links(self, directory):
        (directory / "self").symlink_to(directory)
        (directory / "sub/up").symlink_to("..")
        (directory / "x").mkdir()
        (directory / "y").mkdir()
        (directory / "x/y").symlink_to("../y")
        (directory / "y/x").symlink_to("../x")
        before = fingerprint_path(directory)
        write(directory / "y/new", 1)
        assert fingerprint_path(directory) != before

    def test_link_that_leads_nowhere(self, directory):
        (directory / "link").symlink_to("nowhere")
        before = fingerprint_path(directory)
        (directory / "link").unlink()
        (directory / "link").symlink_to("elsewhere")
        assert fingerprint_path(directory) != before

    def test_pipe_is_not_read(self, directory):
        os.mkfifo(directory / "pipe")
        assert fingerprint_path(directory).startswith("sha256:")

    def test_names_that_are_not_utf8(self, directory):
        path = directory / os.fsdecode(b"\xff")
        try:
            path.touch()
        except OSError:
            pytest.skip("this file system has no such name")
        before = fingerprint_path(directory)
        path.rename(directory / os.fsdecode(b"\xfe"))
        assert fingerprint_path(directory) != before


class TestLargeFiles:
    """They are hashed once."""

    @pytest.fixture
    def large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fingerprints, "CACHED_BYTES_MIN", 1000)
        return write(tmp_path / "model.bin", 1000)

    def test_once(self, large, hashed):
        first = fingerprint_path(large)
        assert fingerprint_path(large) == first
        assert hashed == ["model.bin"]

    def test_digests(self, large):
        fingerprint_path(large)
        digests = json.loads((large.parent / ".freshness/digests.json").read_text())
        ((key, (version, digest)),) = digests.items()
        stat = large.stat()
        assert key == "model.bin"
        assert version == [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        assert fingerprint_path(large) == f"xxh3:{digest}"

    def test_same_size_and_restored_time(self, large, hashed):
        stat = large.stat()
        before = fingerprint_path(large)
        large.write_bytes(b"y" * 1000)
        os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert large.stat().st_mtime_ns == stat.st_mtime_ns
        assert fingerprint_path(large) != before
        assert len(hashed) == 2

    def test_change_at_once(self, large):
        """Clocks of file systems tick every few milliseconds."""
        for byte in (b"a", b"b", b"c"):
            large.write_bytes(byte * 1000)
            before = fingerprint_path(large)
            large.write_bytes(b"z" * 1000)
            assert fingerprint_path(large) != before

    def test_change_while_it_is_hashed(self, large, monkeypatch):
        monkeypatch.setattr(fingerprints, "_has_settled", lambda path, version: False)
        fingerprint_path(large)
        assert not (large.parent / ".freshness/digests.json").exists() or not json.loads(
            (large.parent / ".freshness/digests.json").read_text()
        )

    def test_directory_of_small_files(self, large, hashed):
        directory = large.parent / "shards"
        for number in range(10):
            write(directory / f"{number}", 150)
        before = fingerprint_path(directory)
        assert len(hashed) == 10
        assert fingerprint_path(directory) == before
        write(directory / "3", 150, b"y")
        assert fingerprint_path(directory) != before
        assert hashed[10:] == ["3"]

    def test_entries_of_removed_files(self, large):
        directory = large.parent / "shards"
        write(directory / "1", 1000)
        write(directory / "2", 1000)
        fingerprint_path(directory)
        fingerprint_path(large)
        (directory / "2").unlink()
        fingerprint_path(directory)
        digests = json.loads((large.parent / ".freshness/digests.json").read_text())
        assert set(digests) == {"shards/1", "model.bin"}

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            '{"model.bin": 5}',
            '{"model.bin": []}',
            '{"model.bin": [[], "ab"]}',
            '{"model.bin": [null, null]}',
            '{"other": {"a": 1}}',
        ],
    )
    def test_unusable_digests(self, large, content, hashed):
        expected = fingerprint_path(large)
        file = large.parent / ".freshness/digests.json"
        file.write_text(content)
        assert fingerprint_path(large) == expected
        assert fingerprint_path(large) == expected
        assert len(hashed) == 2

    def test_folder_that_cannot_be_written(self, large, hashed):
        (large.parent / ".freshness").write_text("a file")
        assert fingerprint_path(large) == fingerprint_path(large)
        assert len(hashed) == 2

    def test_message(self, large, monkeypatch, caplog):
        monkeypatch.setattr(fingerprints, "LOGGED_BYTES_MIN", 1000)
        messages = []
        monkeypatch.setattr(
            fingerprints.logger, "info", lambda text, *values: messages.append(text % values)
        )
        fingerprint_path(large)
        fingerprint_path(large)
        assert messages == [f"Fingerprinting {large}, once"]


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({1, 2}, {2, 1}, True),
        ({"a": {"x", "y"}}, {"a": {"y", "x"}}, True),
        ([1, 2], [2, 1], False),
        (b"a", b"a", True),
        (b"a", b"b", False),
        (1, True, False),
    ],
)
def test_value(one, other, is_equal):
    assert (fingerprint_value(one) == fingerprint_value(other)) == is_equal


def test_set_in_processes_with_other_hashes():
    import subprocess
    import sys

    code = (
        "from kedro_freshness.fingerprints import fingerprint_value\n"
        "print(fingerprint_value({'a', 'b', 'c', 'd'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


class TestDatasets:
    """What a dataset holds."""

    def test_file(self, tmp_path):
        path = tmp_path / "a.json"
        dataset = JSONDataset(filepath=str(path))
        assert fingerprint_dataset(dataset) is None
        dataset.save([1])
        assert fingerprint_dataset(dataset) == fingerprint_path(path)
        assert fingerprint_dataset(CachedDataset(dataset)) == fingerprint_path(path)

    def test_versions(self, tmp_path):
        path = tmp_path / "a.json"
        for version, value in (("1", [1]), ("2", [2])):
            JSONDataset(filepath=str(path), version=Version(None, version)).save(value)
        newest = JSONDataset(filepath=str(path), version=Version(None, "3"))
        assert location_of(newest) == path / "2/a.json"
        assert location_of(newest, saving=True) == path / "3/a.json"
        assert fingerprint_dataset(newest) == fingerprint_path(path / "2/a.json")
        # the dataset must find the next version
        JSONDataset(filepath=str(path), version=Version(None, "4")).save([4])
        assert newest.load() == [4]
        first = JSONDataset(filepath=str(path), version=Version("1", None))
        assert location_of(first) == path / "1/a.json"
        assert location_of(first, saving=True) is None
        none = JSONDataset(filepath=str(tmp_path / "b"), version=Version(None, None))
        assert location_of(none) is None
        assert fingerprint_dataset(none) is None

    def test_partitions(self, tmp_path):
        dataset = PartitionedDataset(path=str(tmp_path / "parts"), dataset="text.TextDataset")
        assert fingerprint_dataset(dataset) is None
        dataset.save({"a": "1", "b": "2"})
        first = fingerprint_dataset(dataset)
        assert first == fingerprint_path(tmp_path / "parts")
        dataset.save({"c": "3"})
        assert fingerprint_dataset(dataset) != first

    def test_scheme(self, tmp_path):
        write(tmp_path / "parts/a", 1)
        dataset = PartitionedDataset(path=f"file://{tmp_path}/parts", dataset="text.TextDataset")
        assert location_of(dataset) == tmp_path / "parts"

    def test_pattern(self, tmp_path):
        dataset = InPlaceDataset(str(tmp_path / "*.txt"))
        assert fingerprint_dataset(dataset) is None
        write(tmp_path / "a.txt", 1)
        first = fingerprint_dataset(dataset)
        write(tmp_path / "b.txt", 1)
        assert fingerprint_dataset(dataset) != first

    def test_star_in_a_name(self, tmp_path):
        path = write(tmp_path / "a*", 1)
        assert fingerprint_dataset(InPlaceDataset(path)) == fingerprint_path(path)

    def test_own_fingerprint(self, tmp_path):
        (tmp_path / "a").write_text("Text")
        assert fingerprint_dataset(FingerprintedDataset(tmp_path / "a")) == "text"

    def test_description(self):
        first = fingerprint_dataset(ServerDataset("a", object()))
        assert first == fingerprint_dataset(ServerDataset("a", object()))
        assert first != fingerprint_dataset(ServerDataset("b"))

    @pytest.mark.parametrize("path", ["s3://bucket/a.json", "https://example.org/a.json"])
    def test_remote_file(self, path):
        pytest.importorskip("s3fs" if path.startswith("s3") else "aiohttp")
        dataset = JSONDataset(filepath=path)
        assert not has_path(dataset)
        assert location_of(dataset) is None

    def test_spark_path(self, tmp_path):
        dataset = InPlaceDataset("bucket/table")
        dataset._fs_prefix = "s3a://"
        assert location_of(dataset) is None

    def test_memory(self):
        assert fingerprint_dataset(MemoryDataset()) is None
        assert fingerprint_dataset(MemoryDataset(None)) is not None
        assert fingerprint_dataset(MemoryDataset([1])) == fingerprint_value([1])
        pandas = pytest.importorskip("pandas")
        frames = [MemoryDataset(pandas.DataFrame({"a": [value]})) for value in (1, 1, 2)]
        one, same, other = map(fingerprint_dataset, frames)
        assert one == same != other

    def test_unreadable(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a", 1)

        def refuse(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(fingerprints, "fingerprint_path", refuse)
        assert fingerprint_dataset(InPlaceDataset(path)) is None
