import re

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kedro.io import AbstractDataset, DatasetError

from ja_instruct.datasets.word_list_dataset import WordListDataset
from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import Replacement


def write(path, text, kind="substrings"):
    path.write_bytes(text.encode())
    return WordListDataset(filepath=path, kind=kind)


def refusal_of(dataset) -> str:
    with pytest.raises(InputError) as caught:
        dataset.check()
    with pytest.raises(InputError) as again:
        dataset.load()
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def test_substrings(tmp_path):
    dataset = write(
        tmp_path / "a.yml", '# 翻訳\n\n- "翻訳"\n- 英訳  # 訳\n- " - a "\n- "\\u0942"\n'
    )
    dataset.check()
    assert dataset.load() == ["翻訳", "英訳", " - a ", "\u0942"]


def test_replacements(tmp_path):
    text = '# 直す\n- find: "松下"\n  replace: "三菱"\n- {replace: "", find: "♪"}\n'
    dataset = write(tmp_path / "a.yml", text, "replacements")
    dataset.check()
    assert dataset.load() == [Replacement("松下", "三菱"), Replacement("♪", "")]


def test_empty_list(tmp_path):
    assert write(tmp_path / "a.yml", "# 空\n[]\n").load() == []


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    assert write(tmp_path / "a.yml", "\ufeff- 翻訳\r\n- 英訳\r\n").load() == ["翻訳", "英訳"]


def test_block_texts_may_go_over_several_lines(tmp_path):
    assert write(tmp_path / "a.yml", "- |-\n  一\n  二\n- 三\n").load() == ["一\n二", "三"]


@pytest.mark.parametrize("text", ["", "# - 翻訳\n", "null\n", "---\n"])
def test_file_without_a_list(tmp_path, text):
    message = refusal_of(write(tmp_path / "a.yml", text))
    assert re.search(r"a\.yml is empty, not a list: .*\[\] for an empty list", message)


def test_missing_file(tmp_path):
    dataset = WordListDataset(filepath=tmp_path / "a.yml", kind="substrings")
    assert not dataset.exists()
    assert refusal_of(dataset).endswith("a.yml: no such file")


@pytest.mark.parametrize(
    "wrong", ["yes", "3", "null", "~", "1_000", "2024-13-45", "1:30", "[翻訳]"]
)
def test_what_is_no_text_is_shown_as_it_stands(tmp_path, wrong):
    message = refusal_of(write(tmp_path / "a.yml", f"# 一\n- 翻訳\n\n- {wrong}\n"))
    shown = "a list within the list" if wrong.startswith("[") else wrong
    assert f"a.yml:4 is {shown}, not text" in message
    assert "put it in quotes" in message
    quoted = write(tmp_path / "a.yml", f'# 一\n- 翻訳\n\n- "{wrong}"\n')
    assert quoted.load() == ["翻訳", wrong]


def test_entry_cut_off_by_a_comment_sign(tmp_path):
    assert "a.yml:2 is nothing, not text" in refusal_of(write(tmp_path / "a.yml", "- 一\n- # 二"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('- "一"\n- "二"三"\n', 2),
        ("# 一\n\n- *二\n", 3),
        ("- 一\n- @二\n", 2),
        ('- "一"\n  "二"\n', 2),
        ("- 一\n-二\n- 三\n", 3),
        ('- "一\\d"\n', 1),
        ("- 一\n---\n- 二\n", 2),
        ("- 一\n\t- 二\n", 2),
    ],
)
def test_no_valid_yaml_names_line_and_remedy(tmp_path, text, line):
    message = refusal_of(write(tmp_path / "a.yml", text))
    assert re.search(rf"a\.yml:{line}: not valid YAML \(.+\); .*put in quotes", message)


def test_control_character(tmp_path):
    message = refusal_of(write(tmp_path / "a.yml", "- 一\n- 二\x01\n"))
    assert re.search(r"a\.yml:2: contains the control character U\+0001.*\\x01", message)
    assert write(tmp_path / "a.yml", '- "二\\x01"\n').load() == ["二\x01"]


def test_other_encoding(tmp_path):
    (tmp_path / "a.yml").write_bytes("- 一\n- 翻訳\n".encode("cp932"))
    dataset = WordListDataset(filepath=tmp_path / "a.yml", kind="substrings")
    assert re.search(r"a\.yml:1: not UTF-8 .*iconv", refusal_of(dataset))


@pytest.mark.parametrize(
    "text", ["- 一\n- 二\n  三\n", '- 一\n- "二\n  三"\n', "- 一\n- '二\n\n  三'\n"]
)
def test_entries_that_yaml_would_join(tmp_path, text):
    message = refusal_of(write(tmp_path / "a.yml", text))
    assert re.search(r"a\.yml:2 continues in line [34], and YAML joins .*begin every", message)


def test_mapping_that_lacks_its_dash(tmp_path):
    text = "- find: 一\n  replace: 二\n  find: 三\n  replace: 四\n"
    message = refusal_of(write(tmp_path / "a.yml", text, "replacements"))
    assert re.search(r"a\.yml:1 has 'find' and 'replace' more than once: begin every", message)


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    text = (
        "# 直す\n"
        "- find: 甲\n  replace: 乙\n"
        "- find: yes\n  replace: 一\n"
        "\n"
        "- find: 乙\n  replace: 丙\n"
        "- find: 丁\n  replace: 戊\n    己\n"
    )
    first, *faults = refusal_of(write(tmp_path / "a.yml", text, "replacements")).splitlines()
    assert first.endswith("a.yml has 3 problems:")
    assert "a.yml:4 has yes under 'find', not text" in faults[0]
    assert "a.yml:10 continues in line 11" in faults[1]
    assert "a.yml:2 inserts '乙', in which line 7 replaces '乙' again" in faults[2]


def test_a_list_of_the_other_kind_is_refused(tmp_path):
    assert "write a mapping" in refusal_of(write(tmp_path / "a.yml", "- 一\n", "replacements"))
    text = "- find: 一\n  replace: 二\n"
    assert "not text" in refusal_of(write(tmp_path / "a.yml", text, "substrings"))


def test_unknown_kind(tmp_path):
    with pytest.raises(InputError, match="'kind' is substrings or replacements, not 'words'"):
        WordListDataset(filepath=tmp_path / "a.yml", kind="words")


def test_is_never_saved_to(tmp_path):
    dataset = write(tmp_path / "a.yml", "- 一  # 注\n")
    with pytest.raises(DatasetError, match="edited by hand"):
        dataset.save(["二"])
    assert (tmp_path / "a.yml").read_text("utf-8") == "- 一  # 注\n"


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


IN_A_DIRECTORY_OF_ITS_OWN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(entries=st.lists(st.text(min_size=1), unique=True))
@example(
    entries=["\u2028", "\x85", "\ufeff", "\x00", "'", '"', "\\", "\n", " 一 ", "𠮷", "#", "- a"]
)
@IN_A_DIRECTORY_OF_ITS_OWN
def test_every_text_can_be_written_in_quotes(tmp_path, entries):
    text = yaml.safe_dump(entries, default_style='"', allow_unicode=True, width=10**6)
    assert write(tmp_path / "a.yml", text).load() == entries


PIECES = [
    "- ",
    "\n- ",
    "\n",
    " ",
    '"',
    "'",
    "#",
    ": ",
    "|",
    ">",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a",
    "*a",
]
TEXTS = ["一", "yes", "3", "~", "2024-01-01", "!!int ", "!!str ", "<<", "=", "\t", "\x01", "\\"]


@pytest.mark.parametrize("kind", ["substrings", "replacements"])
@given(parts=st.lists(st.sampled_from([*PIECES, *TEXTS, "find: ", "replace: "]), max_size=14))
@IN_A_DIRECTORY_OF_ITS_OWN
def test_any_file_is_read_as_yaml_has_it_or_refused(tmp_path, kind, parts):
    text = "- " + "".join(parts)
    try:
        entries = write(tmp_path / "a.yml", text, kind).load()
    except InputError:
        return
    plain = [entry._asdict() if kind == "replacements" else entry for entry in entries]
    assert plain == yaml.safe_load(text)
