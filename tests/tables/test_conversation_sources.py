import pytest

from ja_instruct.errors import InputError
from ja_instruct.tables.conversation_sources import find_places


def refusal(*sources):
    with pytest.raises(InputError) as caught:
        find_places(list(sources))
    return str(caught.value)


def test_places_in_the_order_of_sources_patterns_and_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.parquet", "d.ndjson.gz"):
        (tmp_path / name).touch()
    patterns = [str(tmp_path / "*.gz"), str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")]
    places = find_places(
        [{"files": patterns}, {"hub": "owner/name"}, {"files": str(tmp_path / "c.parquet")}]
    )
    found = [(place.number, getattr(place.path, "name", place.path)) for place in places]
    files = [(1, name) for name in ("d.ndjson.gz", "a.jsonl", "b.jsonl")]
    assert found == [*files, (2, "owner/name"), (3, "c.parquet")]
    assert isinstance(places[3].path, str)
    assert places[3].source.hub == "owner/name"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"file": "a.jsonl"}, "source 2: 'file' is unknown; did you mean 'files'?"),
        ({"zzz": 1, "hub": "a/b"}, "source 2: 'zzz' is unknown; the keys are hub, name, split,"),
        ({}, "source 2: give either 'hub: owner/name' or 'files: path/*.jsonl'"),
        ({"hub": "a/b", "files": "c.jsonl"}, "source 2: give either 'hub: owner/name' or"),
        ({"files": "c.jsonl", "split": "x"}, "source 2: split: valid only for a data set of the"),
        ({"hub": "a/b", "columns": ["x"]}, "source 2: 'columns' = ['x']: Input should be a"),
        ({"hub": "a/b", "columns": {"response": "a"}}, "both 'instruction' and 'response'"),
        (
            {"hub": "a/b", "columns": {"instruction": "q", "response": "q"}},
            "source 2: columns: 'q' is given twice",
        ),
        (
            {"hub": "a/b", "columns": {"instruction": "q", "response": "a"}, "roles": {"x": "y"}},
            "source 2: roles, turn_keys: valid only with turns, not with columns of",
        ),
        ({"files": "nowhere/*.jsonl"}, "source 2: no file matches 'nowhere/*.jsonl'; put one"),
        ("a.jsonl", "source 2: Input should be a valid dictionary"),
    ],
)
def test_mistakes(source, message):
    assert message in refusal({"hub": "a/b"}, source)


def test_every_mistake_is_listed():
    message = refusal(
        {"file": "a.jsonl"}, {}, {"files": "x/*.jsonl"}, {"hub": "a/b", "spilt": "train"}
    )
    assert all(f"source {number}: " in message for number in (1, 2, 3, 4))
    assert "did you mean 'split'?" in message


@pytest.mark.parametrize("sources", [[], "a.jsonl", {"files": "a.jsonl"}])
def test_sources_that_are_not_a_list(sources):
    with pytest.raises(InputError, match="sources: give a list, each"):
        find_places(sources)


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.csv").touch()
    message = refusal({"files": str(tmp_path / "*")})
    assert f"source 1: {tmp_path}/a.csv: unknown kind of file; rename or convert" in message
    assert ".jsonl.gz" in message
