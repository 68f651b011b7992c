import pytest
import yaml
from kedro.io import AbstractDataset

from ja_instruct.datasets.word_list_dataset import WordListDataset
from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import Replacement


def write(path, text, kind="substrings"):
    path.write_bytes(text.encode())
    return WordListDataset(filepath=path, kind=kind)


def assert_refused(dataset, message):
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=message):
            read()


def test_substrings(tmp_path):
    dataset = write(tmp_path / "a.yml", "\ufeff- 翻訳\r\n- 英訳 # 訳\r\n")
    dataset.check()
    assert dataset.load() == ["翻訳", "英訳"]


def test_replacements(tmp_path):
    dataset = write(tmp_path / "a.yml", '- {find: 松下, replace: ""}\n', "replacements")
    dataset.check()
    assert dataset.load() == [Replacement("松下", "")]


def test_missing_file(tmp_path):
    dataset = WordListDataset(filepath=tmp_path / "a.yml", kind="substrings")
    assert not dataset.exists()
    assert_refused(dataset, r"a\.yml: no such file")


def test_wrong_entry(tmp_path):
    assert_refused(write(tmp_path / "a.yml", "- 一\n- yes\n"), r"/a\.yml:2 is yes, not text")


def test_other_encoding(tmp_path):
    (tmp_path / "a.yml").write_bytes("- 一\n- 翻訳\n".encode("cp932"))
    dataset = WordListDataset(filepath=tmp_path / "a.yml", kind="substrings")
    assert_refused(dataset, r"a\.yml:1: not UTF-8 .*iconv")


def test_unknown_kind(tmp_path):
    with pytest.raises(InputError, match="'kind' is substrings or replacements, not 'words'"):
        WordListDataset(filepath=tmp_path / "a.yml", kind="words")


def test_preview(tmp_path):
    assert write(tmp_path / "a.yml", "- 一\n- 二\n- 三\n").preview(nrows=2) == {
        "index": [0, 1],
        "columns": ["substring"],
        "data": [["一"], ["二"]],
    }
    text = "- {find: 一, replace: 二}\n"
    assert write(tmp_path / "a.yml", text, "replacements").preview() == {
        "index": [0],
        "columns": ["find", "replace"],
        "data": [["一", "二"]],
    }


def test_from_the_catalog(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("- 一\n", "utf-8")
    dataset = AbstractDataset.from_config(
        "banned",
        {
            "type": "ja_instruct.datasets.word_list_dataset.WordListDataset",
            "filepath": str(path),
            "kind": "substrings",
            "metadata": {"kedro-viz": {"layer": "raw"}},
        },
    )
    assert dataset.exists()
    assert dataset.load() == ["一"]
    assert "a.yml" in repr(dataset)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("banned_substrings", "substrings"),
        ("banned_instruction_substrings", "substrings"),
        ("replacements", "replacements"),
    ],
)
def test_the_projects_own_lists_are_accepted_to_the_letter(pytestconfig, name, kind):
    path = pytestconfig.rootpath / "conf/base/word_lists" / f"{name}.yml"
    entries = WordListDataset(filepath=path, kind=kind).load()
    plain = [entry._asdict() if kind == "replacements" else entry for entry in entries]
    assert plain == yaml.safe_load(path.read_text("utf-8"))
