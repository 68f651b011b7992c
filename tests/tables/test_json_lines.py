import gzip
import io
import json
import logging
import math
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.tables import json_lines, json_types
from ja_instruct.tables.arrow import collect
from ja_instruct.tables.json_lines import parse_plain, read_records, read_tables
from ja_instruct.tables.json_text import load_values, text_columns
from ja_instruct.tables.json_types import (
    JSONText,
    LongInteger,
    TypeClashError,
    build_columns,
    to_arrow,
    widen,
)
from ja_instruct.tables.json_writer import dump_rows, write_tables

CONVERSATIONS = {"conversations": [{"role": str, "content": str}]}


def read(data, **options):
    data = data if isinstance(data, bytes) else data.encode()
    return collect(read_tables(io.BytesIO(data), "a.jsonl", **options)).to_list()


def read_slowly(data, **options):
    """Read with every line parsed by json, none by pyarrow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "parse_plain", lambda block, types: None)
        return read(data, **options)


def without_nulls(value):
    """Return the record without the nulls that Arrow adds for missing keys."""
    if isinstance(value, dict):
        kept = {key: without_nulls(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


characters = st.characters(exclude_categories=["Cs"])
LOOKALIKES = ["2024-01-31", "2024-01-31T12:00:00", "12", "1.5", "true", "null", "{}"]
AWKWARD = ['"\\', "a/b", "😀", "\u2028", "\x85", "\x00\x1f\x7f", "\n}\n{", "} null {", "\ufdd0"]
texts = st.text(characters, max_size=8) | st.sampled_from(LOOKALIKES + AWKWARD)
leaves = [
    texts,
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
]


@st.composite
def record_lists(draw):
    """Draw records whose columns have one type each."""

    def strategy_of(depth):
        kind = draw(st.integers(0, len(leaves) + (2 if depth < 2 else 0) - 1))
        if kind < len(leaves):
            return st.none() | leaves[kind]
        if kind == len(leaves):
            return st.lists(strategy_of(depth + 1), max_size=3)
        keys = draw(st.lists(texts.filter(lambda key: "\0" not in key), unique=True, max_size=3))
        return st.fixed_dictionaries({}, optional={key: strategy_of(depth + 1) for key in keys})

    # every record has an id
    names = texts.filter(lambda key: "\0" not in key and key != "id")
    keys = st.lists(names, unique=True, max_size=4)
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {"id": st.integers(0, 9)}, optional={key: strategy_of(0) for key in draw(keys)}
            ),
            max_size=8,
        )
    )


GOOD_LINES = [
    *('{"a": 1}', '{"a": 2, "b": "x"}', '{"a": 1.5}', "{}", '{"a": 1, "a": 2}', "  ", "\r"),
    *('{"a": NaN}', '{"a": 1e999}', '{"a": 9007199254740993}', '{"b": [null, null]}'),
    *('{"b": []}', '{"b": {"c": []}}', '{"b": "\\ud83d"}', '{"b": "\\ud83d\\ude00"}'),
    *('{"a": "x"}', '{"a": true}', '{"a": 18446744073709551616}', '{"\\u0000": 1}'),
]
BAD_LINES = [
    *("null", "[]", '{"a":', "1}", "}", "{'a': 1}", '{"a": 01}'),
    *('{"a": 1}{"a": 2}', '{"a": 1} null {"a": 2}', '{"a": 1}//', '{"a": 1}\x0c'),
    *('{"a": -Inf}', '\ufeff{"a": 1}', '{"conversations": 1}'),
]


class TestAgainstJson:
    """pyarrow reads the same values as ``json.loads``."""

    @settings(deadline=None)  # a busy computer is not a failure
    @given(
        records=record_lists(),
        ensure_ascii=st.booleans(),
        end=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
        block_bytes=st.integers(1, 400),
    )
    def test_equal(self, records, ensure_ascii, end, block_bytes):
        data = end.join(json.dumps(record, ensure_ascii=ensure_ascii) for record in records)
        fast = read(data, block_bytes=block_bytes)
        assert fast == read_slowly(data, block_bytes=10**6)
        expected = [json.loads(line) for line in data.encode().split(b"\n") if line.strip()]
        assert without_nulls(fast) == without_nulls(expected)

    @given(
        lines=st.lists(st.sampled_from(GOOD_LINES + BAD_LINES), max_size=12),
        broken=st.none()
        | st.tuples(st.integers(0, 60), st.sampled_from([b"\xff", b"\xed\xa0\x80"])),
        block_bytes=st.integers(1, 60),
    )
    @settings(max_examples=300, deadline=None)
    def test_equal_on_bad_records(self, lines, broken, block_bytes):
        data = "\n".join(lines).encode()
        if broken is not None:
            data = data[: broken[0]] + broken[1] + data[broken[0] :]
        options = {"tolerant": True, "block_bytes": block_bytes}
        assert read(data, **options) == read_slowly(data, **options)
        count = sum(bool(line.strip()) for line in data.split(b"\n"))
        empty = sum(line.strip() == b"{}" for line in data.split(b"\n"))
        assert count - empty <= len(read(data, **options)) <= count

    def test_the_fast_path_is_taken(self):
        lines = [json.dumps({"id": i, "t": ["文"], "s": {"x": 0.5, "y": None}}) for i in range(9)]
        types = {"id": int, "t": [str], "s": {"x": float, "y": None}}
        assert parse_plain("\n".join(lines).encode(), types).num_rows == 9

    @pytest.mark.parametrize(
        ("types", "block"),
        [
            ({"a": int}, b'{"a": 1}{"a": 2}\n'),
            ({"a": int}, b'{"a": 1}{"a": 2}\n\n'),
            ({"a": int}, b'{"a": 1} null {"a": 2}\n'),
            ({"a": {"a": int}}, b'{"a":\n{"a": 1}}\n'),
            ({"a": int}, b'\n{"a": 1}'),
            ({"a": int}, b'{"a": 1, "b": 2}'),
            ({"a": int}, b'{"a": 9007199254740993}'),
            ({"a": int}, b'{"a": 1.0}'),
            ({"a": [{"b": float}]}, b'{"a": [null, {"b": 9007199254740993}]}'),
            ({"a": float}, b'{"a": NaN}'),
            ({"a": str}, b'{"a": "\xff"}'),
            ({"a": str}, b'{"a": "\xed\xa0\x80"}'),
            ({"a": str}, b'{"a": "\\ud83d"}'),
            ({"a": [None]}, b'{"a": [null, null]}'),
        ],
    )
    def test_blocks_left_to_the_slow_path(self, types, block):
        assert parse_plain(block, types) is None


class TestReading:
    def test_columns_in_order_of_appearance(self):
        assert list(read('{"b":1,"a":2}\n{"c":3,"a":4}')[0]) == ["b", "a", "c"]

    def test_integers_and_floats_mix(self):
        rows = read('{"a":1}\n{"a":0.5}\n{"a":2}', block_bytes=1)
        assert rows == [{"a": 1}, {"a": 0.5}, {"a": 2}]

    def test_byte_order_mark(self):
        assert read(b'\xef\xbb\xbf{"a":1}\n{"a":2}') == [{"a": 1}, {"a": 2}]
        assert [*read_records(io.BytesIO(b'\xef\xbb\xbf{"a":1}'), "a.jsonl")] == [{"a": 1}]

    def test_lone_surrogate(self, caplog):
        data = '{"a":"\\ud83d\\ude00"}\n{"a":"x\\ud83dy"}\n{"\\udc00":["\\udfff"]}'
        with caplog.at_level(logging.WARNING, "ja_instruct"):
            rows = read(data)
        assert rows[0]["a"] == "😀"
        assert rows[1]["a"] == "x\ufdd0y"
        assert rows[2]["\ufdd0"] == ["\ufdd0"]
        assert "a.jsonl: 2 record(s) contain a lone surrogate" in caplog.text

    def test_nan_and_infinities_become_null(self, caplog):
        lines = [
            '{"a": NaN}',
            '{"a": 1.5, "b": [Infinity, {"c": -Infinity}]}',
            '{"a": 1e999}',
            "{}",
        ]
        data = "\n".join(lines)
        for block_bytes in (1, 1000):
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ja_instruct"):
                rows = read(data, block_bytes=block_bytes)
            assert [row["a"] for row in rows] == [None, 1.5, None, None]
            assert rows[1]["b"] == [None, {"c": None}]
            assert "a.jsonl: 3 record(s) contain NaN or an infinity" in caplog.text
        records = read_records(io.BytesIO(b'{"input": NaN, "x": -1e999}'), "a.jsonl")
        assert [*records] == [{"input": None, "x": None}]

    def test_compressed(self):
        data = gzip.compress(b'{"a":1}\n' * 1000)
        with gzip.open(io.BytesIO(data)) as file:
            tables = read_tables(file, "a.jsonl.gz", block_bytes=64)
            assert sum(table.num_rows for table in tables) == 1000

    @pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"{" + data])
    def test_damaged_gzip_file(self, damage):
        data = damage(gzip.compress(b'{"a":1}\n' * 1000))
        message = r"a\.jsonl\.gz: truncated or invalid gzip file"
        with gzip.open(io.BytesIO(data)) as file, pytest.raises(InputError, match=message):
            list(read_tables(file, "a.jsonl.gz", tolerant=True))

    def test_endless_line(self, monkeypatch):
        monkeypatch.setattr(json_lines, "LINE_BYTES_MAX", 100)
        with pytest.raises(InputError, match=r"a\.jsonl: a line is longer than"):
            read('{"a":"' + "x" * 1000 + '"}', block_bytes=10)

    def test_blocks_are_small(self):
        data = b'{"a":"xxxxxxxxxxxxxxxxxxxxx"}\n' * 1000
        sizes = [table.num_rows for table in read_tables(io.BytesIO(data), "a", block_bytes=300)]
        assert sum(sizes) == 1000
        assert max(sizes) <= 12


class TestBadRecords:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b'{"a": "x', "not JSON (Unterminated string starting at at column 7); every line"),
            (b'{"a": "\x93\xfa"}', "not UTF-8 (invalid start byte at byte 7); convert the file"),
            (b'["x"]', "a list where a JSON object is expected, such as"),
            (b"null", "a NoneType where a JSON object is expected"),
            (
                b'{"conversations": 3}',
                "a value of another type: 'conversations' is a whole",
            ),
            (b'{"conversations": [1]}', "'conversations[]' is a whole number where an object with"),
            (
                b'{"conversations": [{"role": ["x"]}]}',
                "'conversations[].role' is a list of text where",
            ),
            (b'{"g": ' + b"[" * 10**5, "JSON that cannot be read (maximum recursion depth"),
            (b'{"g": ' + b"1" * 5000 + b"}", "JSON that cannot be read (Exceeds the limit"),
        ],
    )
    def test_is_named(self, line, error):
        turns = b'[{"role": "user", "content": "x"}]'
        data = b'{"a": "x", "conversations": ' + turns + b"}\n\n" + line + b'\n{"a": "y"}\n'
        with pytest.raises(InputError) as caught:
            read(data)
        assert str(caught.value).startswith("a.jsonl:3: ")
        assert error in str(caught.value)
        good, bad, last = read(data, tolerant=True)
        assert (bad["bad_record"]["source"], bad["bad_record"]["line"]) == ("a.jsonl", 3)
        assert error in bad["bad_record"]["error"]
        assert bad["bad_record"]["text"] == line.decode(errors="replace")[:200]
        assert bad["a"] is good["bad_record"] is last["bad_record"] is None
        assert [good["a"], last["a"]] == ["x", "y"]

    def test_line_numbers_continue_across_blocks(self):
        lines = ['{"a": 1}'] * 50
        for number in (1, 7, 8, 50):
            lines[number - 1] = "x"
        lines.insert(20, "")
        for block_bytes in (1, 30, 1000):
            rows = read("\n".join(lines), tolerant=True, block_bytes=block_bytes)
            found = [row["bad_record"]["line"] for row in rows if row["bad_record"]]
            assert found == [1, 7, 8, 51]

    def test_column_of_bad_records_exists_only_with_them(self):
        assert read('{"a": 1}', tolerant=True) == [{"a": 1}]
        assert [set(row) for row in read("x\ny", tolerant=True)] == [{"bad_record"}] * 2

    def test_declared_type_comes_before_the_first_value(self):
        lines = ['{"conversations": "x"}', '{"conversations": [{"role": "user", "n": 1}]}']
        bad, good = read("\n".join(lines), tolerant=True, declared=CONVERSATIONS)
        assert bad["bad_record"]["error"].startswith(
            "a value of another type: 'conversations' is text where a list "
            "of objects with role, content is expected"
        )
        assert good["conversations"] == [{"role": "user", "content": None, "n": 1}]
        assert read('{"a": 1}', declared=CONVERSATIONS) == [{"a": 1}]

    def test_file_with_a_column_bad_record(self):
        with pytest.raises(InputError, match=r"a\.jsonl: has a column 'bad_record'.*rename it"):
            read('{"bad_record": 1}', tolerant=True)
        assert read('{"bad_record": 1}') == [{"bad_record": 1}]


MIXED = {
    "text and object": ["web", {"origin": "book", "page": 3}],
    "number and text": [7, "seven"],
    "text and list": ["a", ["b", None]],
    "beyond 64 bits": [1, 2**64],
    "large integer and fraction": [2**60, 0.5],
    "true and number": [True, 1],
    "list of several types": [[1, "x"], [{"y": None}]],
    "keys of several types": [{"x": 1, "y": [1]}, {"x": {"z": "字"}, "y": ["1"]}],
    "arguments": [{"f": {"arguments": {"q": 1}}}, {"f": {"arguments": '{"q": 1}'}}],
    "deep": [json.loads("[" * 300 + "]" * 300)],
    "keys that are data": [{f"k{n}": n} for n in range(50)],
    "empty object": [{}, {"a": {}}, {}],
    "null": [None, "x", None, {"y": 1}],
}


def with_text_loaded(value):
    """Return the value with every JSON text in place of what it stands for."""
    if isinstance(value, str):
        return json.loads(value)
    if isinstance(value, dict):
        return {key: with_text_loaded(item) for key, item in value.items()}
    return [with_text_loaded(item) for item in value] if isinstance(value, list) else value


class TestColumnsOfSeveralTypes:
    """A column that is not part of the conversation never makes a record bad."""

    @pytest.mark.parametrize("values", MIXED.values(), ids=MIXED)
    @pytest.mark.parametrize("block_bytes", [1, 10**6])
    def test_no_value_is_lost(self, values, block_bytes, monkeypatch):
        monkeypatch.setattr(json_types, "KEYS_MAX", 40)
        records = [{"n": n, "meta": value} for n, value in enumerate(values)]
        data = "\n".join(map(json.dumps, records)).encode()
        dataset = collect(read_tables(io.BytesIO(data), "a.jsonl", block_bytes=block_bytes))
        assert dataset["n"][:] == [*range(len(values))]
        file = io.BytesIO()
        write_tables([dataset.data.table], file)
        written = [json.loads(line)["meta"] for line in file.getvalue().splitlines()]
        assert read(file.getvalue())[-1]["meta"] == written[-1]
        texts = text_columns(dataset.data.schema)
        assert bool(texts) == (values is not MIXED["empty object"])
        if texts == ["meta"]:
            written = [value and json.loads(value) for value in written]
        elif texts:
            written = [with_text_loaded(value) for value in written]
        expected = [str(value) if value == 2**64 else value for value in values]
        assert without_nulls(written) == without_nulls(expected)

    def test_only_the_key_that_differs_becomes_text(self):
        lines = ['{"m": [{"x": 1, "y": 1}]}', '{"m": [{"x": 2, "y": "y"}], "c": "d"}']
        for block_bytes in (1, 100):
            tables = read_tables(
                io.BytesIO("\n".join(lines).encode()), "a", block_bytes=block_bytes
            )
            dataset = collect(tables)
            assert text_columns(dataset.data.schema) == ["m[].y"]
            assert dataset.to_list() == [
                {"m": [{"x": 1, "y": 1}], "c": None},
                {"m": [{"x": 2, "y": "y"}], "c": "d"},
            ]

    def test_turns_keep_their_types_and_other_keys_need_not(self):
        turns = [
            {"role": "user", "content": "問", "weight": 1},
            {"role": "assistant", "content": None, "weight": "low", "tool_calls": ["x", {"y": 1}]},
        ]
        lines = [json.dumps({"conversations": [turn]}) for turn in turns]
        rows = read("\n".join(lines), block_bytes=1)
        assert [without_nulls(row["conversations"][0]) for row in rows] == without_nulls(turns)

    def test_key_with_a_nul_character(self, caplog):
        with caplog.at_level(logging.WARNING, "ja_instruct"):
            assert read('{"h\\u0000": 1, "a": "\\u0000"}') == [{"h\ufdd0": 1, "a": "\0"}]
        assert "a.jsonl: 1 record(s)" in caplog.text


class TestTypes:
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.text(max_size=2)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    )

    @given(values=st.lists(values, max_size=5))
    def test_arrow_holds_all_values(self, values):
        known = None
        for value in values:
            before = repr(known)
            new = widen(known, value)
            assert repr(known) == before
            known = new
            assert widen(known, value) is known
        (array,) = build_columns([{"x": value} for value in values], {"x": known})
        assert array.type == to_arrow(known)
        assert without_nulls(load_values(array)) == without_nulls(values)

    def test_long_integers(self):
        assert widen(int, 2**60) is LongInteger
        assert widen(LongInteger, 1) is LongInteger
        assert widen(float, 2**53) is float
        for known, value in ((LongInteger, 0.5), (float, 2**60), (int, True), (bool, 1)):
            assert widen(known, value) is JSONText
            with pytest.raises(TypeClashError):
                widen({"x": known}, {"x": value}, {"x": {}})


def write(table):
    file = io.BytesIO()
    write_tables([table], file)
    return file.getvalue()


class TestWriting:
    @settings(deadline=None)
    @given(records=record_lists())
    def test_equals_json(self, records):
        data = "\n".join(map(json.dumps, records)).encode()
        for table in read_tables(io.BytesIO(data), "a"):
            (batch,) = table.to_batches()
            (slow, replaced), fast = dump_rows(batch), write(table)
            assert not replaced
            assert [*map(json.loads, fast.split(b"\n")[:-1])] == table.to_pylist()
            assert [*map(json.loads, slow.split(b"\n")[:-1])] == table.to_pylist()
            if not any(map(pa.types.is_floating, types_in(table.schema))):
                assert fast == slow

    def test_bytes(self):
        table = pa.table({"t": ['日本/\u2028\x85\x7f\n\t"\\\x01😀'], "n": [None], "i": [2**63 - 1]})
        assert (
            write(table)
            == (
                '{"t":"日本/\u2028\x85\x7f\\n\\t\\"\\\\\\u0001😀","n":null,"i":9223372036854775807}\n'
            ).encode()
        )

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [None, [x]], lambda x: {"y": [x]}])
    def test_nan_and_infinities(self, value, wrap, caplog):
        table = pa.table({"x": [wrap(1.5), wrap(value), None], "s": ["NaN", "Infinity", ""]})
        with caplog.at_level(logging.WARNING, "ja_instruct"):
            written = write(table)
        rows = [json.loads(line, parse_constant=pytest.fail) for line in written.splitlines()]
        assert [row["x"] for row in rows] == [wrap(1.5), wrap(None), None]
        assert [row["s"] for row in rows] == ["NaN", "Infinity", ""]
        assert "1 row(s) contain NaN or an infinity" in caplog.text

    def test_types_that_json_does_not_have_become_text(self):
        zone = pa.timestamp("s", "Asia/Tokyo")
        columns = {
            "date": pa.array([0], pa.date32()),
            "time": pa.array([1], pa.timestamp("s")),
            "zone": pa.array([1], zone),
            "clock": pa.array([1], pa.time32("s")),
            "long": pa.array([90], pa.duration("s")),
            "bytes": pa.array([b"x\xff"]),
            "sum": pa.array([Decimal("1.50")]),
            "word": pa.array(["字"]).dictionary_encode(),
            "view": pa.array(["字"], pa.string_view()),
            "map": pa.array([[("k", b"x")]], pa.map_(pa.string(), pa.binary())),
            "deep": pa.array([[{"b": b"x", "n": 1}]]),
            "pair": pa.array([[0.5, 1]], pa.list_(pa.float32(), 2)),
            "pairs": pa.array([[b"x"]], pa.large_list(pa.binary())),
        }
        (row,) = [json.loads(line) for line in write(pa.table(columns)).splitlines()]
        assert row == {
            "date": "1970-01-01",
            "time": "1970-01-01T00:00:01",
            "zone": "1970-01-01T09:00:01+09:00",
            "clock": "00:00:01",
            "long": "0:01:30",
            "bytes": "eP8=",
            "sum": "1.50",
            "word": "字",
            "view": "字",
            "map": '[["k","eA=="]]',
            "deep": [{"b": "eA==", "n": 1}],
            "pair": [0.5, 1.0],
            "pairs": '["eA=="]',
        }
        assert text_columns(pa.table(columns).schema) == ["map", "pairs"]
        empty = {name: column.slice(0, 0) for name, column in columns.items()}
        assert write(pa.table(empty)) == b""

    def test_large_tables_are_written_in_parts(self):
        table = pa.table({"n": range(2500)})
        assert [json.loads(line)["n"] for line in write(table).splitlines()] == [*range(2500)]


def types_in(schema_or_type):
    for field in schema_or_type:
        yield field.type
        if pa.types.is_list(field.type):
            yield from types_in([field.type.value_field])
        elif pa.types.is_struct(field.type):
            yield from types_in(field.type)
