import pytest
from kedro.io import AbstractDataset, DataCatalog, DatasetError

from ja_instruct import datasets
from ja_instruct.demo import E5ColbertDataset, GGUFModelDataset

INPUT = "this catalog entry is an input and is never written to"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("AnswerStoreDataset", {"filepath": "a"}, "append answers to what load"),
        ("ColbertCheckpointDataset", {"filepath": "a"}, INPUT),
        ("ConversationsDataset", {"sources": "a"}, INPUT),
        ("EncodingCacheDataset", {"filepath": "a"}, "the node that encodes writes to what load"),
        ("GGUFConverterDataset", {"llama_cpp_dir": "a"}, INPUT),
        ("HubDataset", {"dataset_name": "a"}, INPUT),
        ("HubModelDataset", {"repo_id": "a"}, INPUT),
        ("ModelDirectoryDataset", {"filepath": "a"}, INPUT),
        ("TokenizerDataset", {"filepath": "a"}, INPUT),
        ("WordListDataset", {"filepath": "a", "kind": "substrings"}, "edited by hand"),
    ],
)
def test_inputs_are_never_saved_to(tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    dataset = getattr(datasets, name)(**arguments)
    with pytest.raises(DatasetError, match=rf"{name}\(\w+='a'.*\): .*{message}"):
        dataset.save("data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["JSONLinesDataset", "GGUFFileDataset", "AdapterDataset"])
def test_remains_of_a_killed_process_are_removed(tmp_path, name):
    (tmp_path / ".a.0123abcd.new").touch()
    getattr(datasets, name)(filepath=tmp_path / "a").discard_unfinished()
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_conversion_are_removed(tmp_path):
    source = {"package": "x", "sha256": ""}
    for name in ("m", "m.gguf", "e5"):
        (tmp_path / f".{name}.0123abcd.new").touch()
    GGUFModelDataset(
        **source, gguf_filepath=tmp_path / "m.gguf", filepath=tmp_path / "m", model_id="owner/name"
    ).discard_unfinished()
    E5ColbertDataset(**source, filepath=tmp_path / "e5", file="e5.bin").discard_unfinished()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("WordListDataset", {"kind": "replacements"}),
        ("JSONLinesDataset", {}),
        ("AdapterDataset", {}),
    ],
)
def test_description_and_configuration_are_the_catalog_entry(tmp_path, name, arguments):
    arguments = {"filepath": str(tmp_path / "a"), **arguments}
    entry = {"type": f"ja_instruct.datasets.{name}", **arguments, "metadata": {"layer": "x"}}
    dataset = AbstractDataset.from_config("a", entry)
    assert dataset._describe() == arguments
    (config,) = DataCatalog({"a": dataset}).to_config()[0].values()
    assert {key: value for key, value in config.items() if key != "type"} == arguments
