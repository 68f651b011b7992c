"""The datasets of one file that save atomically and explain a file that they cannot read."""

import inspect
import json
import pickle

import pytest
from kedro.io import AbstractDataset, DataCatalog, Version
from kedro_datasets.json import JSONDataset as StockJSON
from kedro_datasets.plotly import JSONDataset as StockPlotly
from kedro_viz.models.utils import get_dataset_type
from plotly.graph_objects import Figure

from ja_instruct.datasets import JSONDataset, TextDataset, plotly
from ja_instruct.errors import InputError

FIGURE = Figure().add_scatter(x=["語"], y=[1.5])
CONTENTS = [
    pytest.param(JSONDataset, {"質問": [1, None], "a": 0.1}, {"質問": [2]}, id="json"),
    pytest.param(TextDataset, "<p>質問</p>\n", "新", id="text"),
    pytest.param(plotly.JSONDataset, FIGURE, Figure(), id="plotly"),
]
every = pytest.mark.parametrize(("kind", "old", "new"), CONTENTS)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@every
def test_saved_and_loaded(tmp_path, kind, old, new):
    dataset = kind(filepath=tmp_path / "deep" / "report")
    assert not dataset.exists()
    for content in (old, new):
        dataset.save(content)
        assert dataset.exists()
        assert dataset.load() == content
    assert names(tmp_path / "deep") == ["report"]
    assert pickle.loads(pickle.dumps(dataset)).load() == new


def test_bytes_are_those_of_the_library(tmp_path):
    mine, stock = str(tmp_path / "mine"), str(tmp_path / "stock")
    content = {"質問": [1, None], "a": 1.5}
    JSONDataset(filepath=mine).save(content)
    StockJSON(
        filepath=stock,
        save_args={"ensure_ascii": False, "indent": 2},
        fs_args={"open_args_save": {"encoding": "utf-8"}},
    ).save(content)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "stock").read_bytes()
    plotly.JSONDataset(filepath=mine).save(FIGURE)
    StockPlotly(filepath=stock).save(FIGURE)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "stock").read_bytes()


@every
@pytest.mark.parametrize("has_old", [True, False])
def test_what_cannot_be_saved_leaves_what_was_there(tmp_path, kind, old, new, has_old, monkeypatch):
    dataset = kind(filepath=tmp_path / "report")
    if has_old:
        dataset.save(old)

    def fail(descriptor):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(Exception, match="no space"):
        dataset.save(new)
    assert dataset.exists() == has_old
    assert names(tmp_path) == (["report"] if has_old else [])
    if has_old:
        assert dataset.load() == old


NOT_JSON = "not valid JSON (line 1, column 1: "
FAULTS = [
    (JSONDataset, b"", "the file is empty"),
    (JSONDataset, b'{\n  "a": [1,', "not valid JSON (line 2, column 11: Expecting value)"),
    (JSONDataset, b"<html>", NOT_JSON + "Expecting value)"),
    (JSONDataset, b"PK\x03\x04\x93\xfa", "not UTF-8 (byte 4: invalid start byte)"),
    (JSONDataset, '{"日本": 1}'.encode("shift_jis"), "not UTF-8 (byte 2: invalid start byte)"),
    (plotly.JSONDataset, b"", "the file is empty"),
    (plotly.JSONDataset, b'{"data":[', "not valid JSON (line 1, column 10: "),
    (plotly.JSONDataset, b"\xff\xfe{\x00", "not UTF-8 (byte 0: invalid start byte)"),
    (plotly.JSONDataset, b'{"summary": {}}', "cannot be read ("),
    (TextDataset, "日本".encode("euc_jp"), "not UTF-8 (byte 0: invalid continuation byte)"),
]


@pytest.mark.parametrize(("kind", "content", "fault"), FAULTS)
def test_file_that_cannot_be_read(tmp_path, kind, content, fault):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    dataset = kind(filepath=path)
    assert dataset.exists()
    for read in (dataset.load, dataset.check):
        with pytest.raises(InputError) as caught:
            read()
        message = caught.value.message
        assert message.startswith(f"{path}: {fault}")
        assert message.endswith("; it was cut off or edited: remove it, and run its pipeline again")


@every
def test_check(tmp_path, kind, old, new):
    dataset = kind(filepath=tmp_path / "report")
    with pytest.raises(InputError, match=r"report does not exist"):
        dataset.check()
    dataset.save(old)
    dataset.check()


@every
def test_versions(tmp_path, kind, old, new):
    path = tmp_path / "report.json"
    for version, content in (("2025", old), ("2026", new)):
        kind(filepath=path, version=Version(None, version)).save(content)
    remains = path / "2027" / ".report.json.0123abcd.new"
    remains.parent.mkdir()
    remains.touch()
    latest = kind(filepath=path, version=Version(None, None))
    latest.discard_unfinished()
    assert names(path) == ["2025", "2026"]
    assert latest.load() == new
    assert kind(filepath=path, version=Version("2025", None)).load() == old


@every
def test_remote_file_systems_are_left_to_the_library(kind, old, new):
    dataset = kind(filepath="memory://bucket/report.json")
    dataset.save(old)
    assert dataset.load() == old
    dataset.release()


@pytest.mark.parametrize(
    ("name", "viz_type", "preview"),
    [
        ("JSONDataset", "datasets.json_dataset.JSONDataset", "JSONPreview"),
        # kedro-viz draws a plot's icon for exactly this type
        ("plotly.JSONDataset", "plotly.json_dataset.JSONDataset", "PlotlyPreview"),
    ],
)
def test_kedro_viz_recognizes_it(tmp_path, name, viz_type, preview):
    entry = {"type": f"ja_instruct.datasets.{name}", "filepath": str(tmp_path / "plot.json")}
    dataset = AbstractDataset.from_config("plot", entry)
    dataset.save(FIGURE if "plotly" in name else {"a": 1})
    assert get_dataset_type(dataset) == viz_type
    assert str(inspect.signature(dataset.preview).return_annotation).endswith(preview)
    assert dataset.preview()
    assert dataset._describe()["filepath"] == entry["filepath"]


def test_configuration_is_the_catalog_entry(tmp_path):
    arguments = {"filepath": str(tmp_path / "a"), "save_args": {"indent": 1}}
    entry = {"type": "ja_instruct.datasets.JSONDataset", **arguments}
    dataset = AbstractDataset.from_config("a", entry)
    (config,) = DataCatalog({"a": dataset}).to_config()[0].values()
    assert {key: value for key, value in config.items() if value and key != "type"} == arguments
    dataset.save([1])
    assert (tmp_path / "a").read_text() == "[\n 1\n]"


def test_nan_and_infinities_are_saved_as_null(tmp_path):
    dataset = JSONDataset(filepath=tmp_path / "report.json")
    dataset.save({"loss": [0.5, float("nan")], "best": float("-inf")})
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": [0.5, None], "best": None}
