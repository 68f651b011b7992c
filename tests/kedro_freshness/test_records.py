"""Records: their content, kills between their steps, and files that cannot be used."""

import json
import os
import time
from datetime import datetime

import freshness_nodes as nodes
import pytest
from freshness_datasets import InPlaceDataset, Killed
from kedro.pipeline import node

from kedro_freshness.fingerprints import fingerprint_path

UNFINISHED = "its save did not finish"
RATE = {"training": {"rate": 0.5}}


def test_content(project):
    project.libraries = ("kedro",)
    project.run(env="gpu")
    record = project.record("model")
    made_at = datetime.fromisoformat(record.pop("made_at"))
    assert abs(time.time() - made_at.timestamp()) < 60
    assert record.pop("code").startswith("freshness_nodes ")
    assert list(record.pop("libraries")) == ["kedro"]
    assert record == {
        "dataset": "model",
        "node": "train",
        "environment": "gpu",
        "run": "run 1",
        "parameters": {"training.rate": 0.1, "training.lora.rank": 8},
        "inputs": {"cleaned": fingerprint_path(project.path("cleaned"))},
        "output": fingerprint_path(project.path("model")),
        "saved": True,
        "format": 1,
    }
    assert project.record("cleaned")["inputs"] == {"raw": fingerprint_path(project.path("raw"))}


def test_one_file_for_each_output(project):
    project.run()
    folder = project.folder / "data/.freshness"
    names = {"cleaned.json.json", "model.json.json", "metrics.json.json", "report.txt.json"}
    assert {path.name for path in folder.iterdir()} == names


def test_no_records_of_what_is_not_made(project):
    project.run(node_names=["clean"])
    assert [path.name for path in project.record_path("model").parent.iterdir()] == [
        "cleaned.json.json"
    ]


def test_failed_node(project):
    project.run()

    def fail(*_):
        raise RuntimeError("no")

    project.set("__default__", node(fail, ["raw", "params:limit"], "cleaned", name="clean"))
    with pytest.raises(RuntimeError):
        project.run()
    assert project.states() == {"cleaned": "fresh"}


def test_failed_save(project):
    """What a failed save leaves is made again, even with the same parameters."""
    project.set("__default__", node(nodes.as_list, "raw", "model", name="train"))
    project.run()
    project.set("__default__", node(lambda _: [1, object()], "raw", "model", name="train"))
    with pytest.raises(Exception, match="not JSON serializable"):
        project.run()
    assert project.path("model").read_text() != "[[3, 1, 2]]"
    project.set("__default__", node(nodes.as_list, "raw", "model", name="train"))
    assert project.reasons("model") == [UNFINISHED]
    assert project.again().nodes == ["train"]
    assert project.read("model") == [[3, 1, 2]]


class TestKills:
    """The process ends at any moment of a save."""

    @pytest.fixture(autouse=True)
    def _text(self, project):
        project.catalog = {
            "raw": project.json_entry("raw"),
            "text": {
                "type": "freshness_datasets.InPlaceDataset",
                "filepath": str(project.folder / "data/text"),
            },
            "copy": project.json_entry("copy"),
        }
        project.set(
            "__default__",
            node(nodes.join, ["raw", "params:training"], "text", name="write"),
            node(nodes.as_list, "text", "copy", name="copy"),
        )

    @pytest.fixture(params=["missing", "fresh", "unknown"])
    def before(self, request, project):
        """Return the state before the run that is killed."""
        if request.param == "fresh":
            project.run()
        if request.param == "unknown":
            (project.folder / "data/text").write_text("by hand")
        return request.param

    def kill(self, project, monkeypatch, place):
        if isinstance(place, int):
            monkeypatch.setattr(InPlaceDataset, "killed_after", place)
        else:
            self.kill_in(monkeypatch, *place)
        with pytest.raises(Killed):
            project.run(params=RATE)
        monkeypatch.undo()
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr("kedro_freshness.hooks.pipelines", project.pipelines)

    @staticmethod
    def kill_in(monkeypatch, name, saved=None):
        import kedro_freshness.hooks

        function = getattr(kedro_freshness.hooks, name)

        def killed(*arguments, **options):
            if saved is None or options["saved"] == saved:
                raise Killed
            return function(*arguments, **options)

        monkeypatch.setattr(kedro_freshness.hooks, name, killed)

    def test_before_the_pending_record(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, ("begin_record", False))
        assert project.states(params=RATE)["text"] == before.replace("fresh", "stale")
        assert project.states()["text"] == before

    def test_before_the_first_byte(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, 0)
        # of unknown origin it was to be overwritten, and whether it was is unknown
        now = {"missing": "missing", "fresh": "fresh", "unknown": "stale"}[before]
        assert project.states()["text"] == now
        again = project.again()
        assert again.nodes == ([] if now == "fresh" else ["write", "copy"])
        assert not list(project.folder.rglob("*.pending.json"))

    def test_half_written(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, 3)
        assert (project.folder / "data/text").read_text() == "[3,"
        assert project.reasons("text", params=RATE) == [UNFINISHED]
        # even a run with the same parameters does not trust it
        again = project.again(params=RATE)
        assert again.nodes == ["write", "copy"]
        assert f"Made again: text: {UNFINISHED}" in again.messages
        assert set(project.states(params=RATE).values()) == {"fresh"}
        assert not list(project.folder.rglob("*.pending.json"))

    def test_saved_but_not_marked(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, ("begin_record", True))
        assert project.reasons("text", params=RATE) == [UNFINISHED]
        assert project.again(params=RATE).nodes == ["write", "copy"]

    def test_saved_and_marked(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, ("complete_record",))
        assert project.states(params=RATE)["text"] == "fresh"
        again = project.again(params=RATE)
        assert again.nodes == ["copy"]
        assert set(project.states(params=RATE).values()) == {"fresh"}
        assert not list(project.folder.rglob("*.pending.json"))

    def test_process_that_is_saving(self, project, monkeypatch):
        """Its pending record is left alone."""
        self.kill(project, monkeypatch, ("complete_record",))
        (pending,) = project.folder.rglob("*.pending.json")
        pending.write_text(json.dumps(json.loads(pending.read_text()) | {"process": os.getppid()}))
        project.again(params=RATE, node_names=["write"])
        assert pending.exists()

    def test_plain_run_after_a_kill(self, project, before, monkeypatch):
        self.kill(project, monkeypatch, 3)
        project.run(params=RATE)
        assert set(project.states(params=RATE).values()) == {"fresh"}
        assert not list(project.folder.rglob("*.pending.json"))

    def test_reader_of_a_half_written_text(self, project, monkeypatch):
        self.kill(project, monkeypatch, 3)
        run = project.run(node_names=["copy"], params=RATE)
        assert f"text, an input of copy, is stale: {UNFINISHED}" in run.text

    def test_removed_after_a_kill(self, project, monkeypatch):
        self.kill(project, monkeypatch, 3)
        (project.folder / "data/text").unlink()
        assert project.states()["text"] == "missing"
        assert project.again().nodes == ["write", "copy"]

    def test_temporary_files_of_a_killed_run(self, project):
        project.run()
        folder = project.folder / "data/.freshness"
        of_nobody, of_another = folder / ".a.b.new", folder / f".{os.getppid()}.aa.new"
        for path in (of_nobody, of_another):
            path.write_text("{")
        project.again()
        assert not of_nobody.exists()
        assert of_another.exists()


class TestGenerators:
    """An output that is saved in chunks is complete once its node has ended."""

    @pytest.fixture(autouse=True)
    def _chunks(self, project):
        project.catalog = {
            "raw": project.json_entry("raw"),
            "text": {
                "type": "freshness_datasets.InPlaceDataset",
                "filepath": str(project.folder / "data/text"),
                "mode": "a",
            },
            "copy": project.json_entry("copy"),
        }
        project.write("raw", [1, 2, 3])
        project.set(
            "__default__",
            node(nodes.chunks, "raw", "text", name="write"),
            node(nodes.as_list, "text", "copy", name="copy"),
        )

    def test_one_fingerprint_of_the_whole(self, project, monkeypatch):
        import kedro_freshness.hooks as hooks

        counted, original = [], hooks.fingerprint_dataset
        monkeypatch.setattr(
            hooks,
            "fingerprint_dataset",
            lambda dataset, *path: counted.append(dataset) or original(dataset, *path),
        )
        project.run(node_names=["write"])
        assert (project.folder / "data/text").read_text() == "1\n2\n3\n"
        assert len(counted) == 1
        assert project.states() == {"text": "fresh", "copy": "missing"}

    def test_reader_in_the_same_run(self, project):
        project.run()
        assert project.states() == {"text": "fresh", "copy": "fresh"}
        assert project.again().nodes == []

    def test_kill_between_chunks(self, project, monkeypatch):
        def stopped(raw):
            yield f"{raw[0]}\n"
            raise Killed

        whole = project.pipelines["__default__"]
        project.set("__default__", node(stopped, "raw", "text", name="write"))
        with pytest.raises(Killed):
            project.run()
        project.pipelines["__default__"] = whole
        assert project.reasons("text") == [UNFINISHED]
        (project.folder / "data/text").unlink()
        assert project.again().nodes == ["write", "copy"]

    def test_kill_after_the_reader_began(self, project, monkeypatch):
        def stopped(text):
            raise Killed

        whole = project.pipelines["__default__"]
        project.set(
            "__default__",
            node(nodes.chunks, "raw", "text", name="write"),
            node(stopped, "text", "copy", name="copy"),
        )
        with pytest.raises(Killed):
            project.run()
        project.pipelines["__default__"] = whole
        assert project.states() == {"text": "fresh", "copy": "missing"}


UNUSABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"format": 1}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", UNUSABLE)
def test_unusable_record(project, content):
    project.run()
    project.record_path("model").write_bytes(content)
    again = project.again()
    assert again.nodes == []
    assert "Of unknown origin, taken as they are: model." in again.text
    project.run()
    assert set(project.states().values()) == {"fresh"}


@pytest.mark.parametrize("content", UNUSABLE)
def test_unusable_pending_record(project, content):
    project.run()
    pending = project.record_path("model").with_name("model.json.pending.json")
    pending.write_bytes(content)
    assert project.again().nodes == []
    assert not pending.exists()


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"parameters": []}, {"inputs": None}, {"libraries": "torch"}, {"output": 5}],
)
def test_record_of_another_format(project, change):
    project.run()
    path = project.record_path("model")
    path.write_text(json.dumps(project.record("model") | change))
    assert project.states()["model"] == "unknown"


def test_record_with_a_field_of_a_later_version(project):
    project.run()
    path = project.record_path("model")
    path.write_text(json.dumps(project.record("model") | {"seconds": 5}))
    assert project.states()["model"] == "fresh"


def test_folder_that_cannot_be_written(project):
    (project.folder / "data/.freshness").write_text("a file")
    run = project.run()
    assert run.nodes == ["clean", "train", "report"]
    warnings = [line for line in run.messages if "cannot be written" in line]
    assert len(warnings) == 4
    assert warnings[0].startswith(f"{project.record_path('cleaned')} cannot be written (")
    assert warnings[0].endswith("): the output will be of unknown origin")
    assert set(project.states().values()) == {"unknown"}


@pytest.mark.parametrize(
    "name",
    [
        "日本語 の 結果",
        "a b'c\"d\\e\n",
        "[x]?{y}%s",
        os.fsdecode(b"\xff\xfe bytes"),
        "n" * 255,
        "語" * 85,
        "n" * 242,
        "digests",
        "a.pending",
    ],
)
def test_names(project, name):
    try:
        (project.folder / name).touch()
    except OSError:
        pytest.skip("this file system has no such name")
    path = project.folder / "data" / name
    project.catalog["text"] = {"type": "freshness_datasets.InPlaceDataset", "filepath": str(path)}
    project.catalog["other"] = project.catalog["text"] | {"filepath": str(path.with_name("a"))}
    project.set(
        "__default__",
        node(nodes.join, "raw", "text", name="write"),
        node(nodes.join, "text", "other", name="write_more"),
    )
    run = project.run()
    assert run.messages == []
    assert project.states() == {"text": "fresh", "other": "fresh"}
    assert project.again().nodes == []
    path.write_text("by hand")
    assert project.states()["text"] == "unknown"


def test_output_in_a_folder_that_does_not_exist(project):
    project.catalog["model"]["filepath"] = str(project.folder / "new/folder/model.json")
    project.run()
    assert (project.folder / "new/folder/.freshness/model.json.json").is_file()
