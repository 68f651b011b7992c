import resource
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets, config
from hypothesis import given, settings
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.tables.arrow import collect, iterate_tables
from ja_instruct.tables.json_text import text_columns


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache folder of datasets, one for each test."""
    folder = tmp_path / "of datasets"
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", folder)
    return folder


def open_files(folder):
    links = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            links.append(path.readlink())
        except FileNotFoundError:  # the directory listing itself
            continue
    return [link for link in links if link.is_relative_to(folder)]


def rows_of(tables):
    return [row for table in tables for row in table.to_pylist()]


def read_private_bytes():
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


WIDENING = [
    pa.table({"text": pa.nulls(2), "count": [1, 2]}),
    pa.table({"text": ["一", "二"], "count": [1.5, 2.0]}),
    pa.table({"count": [3], "turns": [[{"role": "user"}]]}),
    pa.table({"turns": [[{"role": "user", "weight": 1}], None]}),
    pa.table({"turns": [[{"weight": 0.5}]], "text": ["三"]}),
]
WIDENED = [
    {"text": None, "count": 1.0, "turns": None},
    {"text": None, "count": 2.0, "turns": None},
    {"text": "一", "count": 1.5, "turns": None},
    {"text": "二", "count": 2.0, "turns": None},
    {"text": None, "count": 3.0, "turns": [{"role": "user", "weight": None}]},
    {"text": None, "count": None, "turns": [{"role": "user", "weight": 1.0}]},
    {"text": None, "count": None, "turns": None},
    {"text": "三", "count": None, "turns": [{"role": None, "weight": 0.5}]},
]


class TestCollect:
    @pytest.mark.parametrize("memory_bytes_max", [0, 40, 80, 2**20])
    def test_columns_widen(self, memory_bytes_max):
        dataset = collect(WIDENING, memory_bytes_max=memory_bytes_max)
        assert dataset.to_list() == WIDENED
        assert dataset.features["count"].dtype == "float64"

    @pytest.mark.parametrize("memory_bytes_max", [0, 2**20])
    def test_lists_of_nulls_widen(self, memory_bytes_max):
        values = [{"l": [None, None]}, None, {"l": [], "n": 1}, {"l": [None] * 3, "m": ["x"]}]
        tables = [pa.table({"s": [value], "k": [[value]]}) for value in values]
        dataset = collect(
            [*tables, *(table[:0] for table in tables)], memory_bytes_max=memory_bytes_max
        )
        dataset.data.table.validate(full=True)
        wide = [value and {"l": None, "n": None, "m": None, **value} for value in values]
        assert dataset["s"][:] == wide
        assert dataset["k"][:] == [[value] for value in wide]

    def test_small_data_stays_in_memory(self, folder):
        assert collect(WIDENING).num_rows == len(WIDENED)
        assert not folder.exists()

    def test_large_data_is_in_a_nameless_file_deleted_with_it(self, folder):
        dataset = collect(WIDENING, memory_bytes_max=0)
        assert list(folder.iterdir()) == []
        assert len(open_files(folder)) == 1
        del dataset
        assert open_files(folder) == []

    def test_large_data_takes_little_memory(self, folder):
        text = "日本語の文" * 20_000
        before = read_private_bytes()
        dataset = collect(
            (pa.table({"text": [text] * 10}) for _ in range(100)), memory_bytes_max=2**23
        )
        assert dataset.data.nbytes > 280 * 2**20
        assert read_private_bytes() - before < 120 * 2**20
        assert all(table["text"][0].as_py() == text for table in iterate_tables(dataset, rows=10))
        assert read_private_bytes() - before < 120 * 2**20

    def test_alternating_columns_take_one_file_and_few_streams(self):
        tables = [pa.table({"a": [1]}), pa.table({"b": ["x"]})] * 50
        dataset = collect(tables, memory_bytes_max=0)
        assert dataset.to_list() == [{"a": 1, "b": None}, {"a": None, "b": "x"}] * 50

    def test_nothing(self):
        assert collect([]).to_list() == []
        assert collect([pa.table({"text": pa.array([], pa.string())})]).column_names == ["text"]

    def test_tables_of_another_dataset(self):
        source = Dataset.from_list([{"text": "一"}])
        assert collect([source.data.table]).to_list() == source.to_list()

    @pytest.mark.parametrize("memory_bytes_max", [0, 40, 2**20])
    def test_values_of_several_types_become_json_text(self, memory_bytes_max):
        values = ["一", 2, [3], {"a": 4}, {"a": "五", "b": None}, None, 2**53 + 1, 0.5, b"x"]
        tables = [pa.table({"x": [value], "y": [{"z": [value]}], "n": [1]}) for value in values]
        dataset = collect(tables, memory_bytes_max=memory_bytes_max)
        assert text_columns(dataset.data.schema) == ["x", "y.z[]"]
        read = ["一", 2, [3], {"a": 4}, {"a": "五"}, None, 2**53 + 1, 0.5, "eA=="]
        assert dataset["x"][:] == read
        assert dataset["y"][:] == [{"z": [value]} for value in read]
        assert collect([dataset.data.table, *tables[:1]])["x"][:] == [*read, "一"]

    @pytest.mark.parametrize("memory_bytes_max", [0, 2**20])
    def test_integers_too_large_for_floats(self, memory_bytes_max):
        tables = [pa.table({"score": [value]}) for value in (0.5, 2**53 + 1, 3)]
        for order in (tables, tables[::-1]):
            dataset = collect(order, memory_bytes_max=memory_bytes_max)
            assert sorted(dataset["score"][:]) == [0.5, 3, 2**53 + 1]

    def test_full_disk(self, folder):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        try:
            with pytest.raises(InputError) as caught:
                collect((pa.table({"text": ["x" * 2**20]}) for _ in range(9)), memory_bytes_max=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(folder) in str(caught.value)
        assert "HF_DATASETS_CACHE" in str(caught.value)
        assert open_files(folder) == []

    def test_folder_that_cannot_be_made(self, folder):
        folder.write_text("a file")
        with pytest.raises(InputError, match=r"of datasets: .*HF_DATASETS_CACHE"):
            collect(WIDENING, memory_bytes_max=0)

    def test_fingerprints_differ(self):
        tables = [pa.table({"text": ["一"]})]
        assert collect(tables)._fingerprint != collect(tables)._fingerprint

    def test_equal_datasets_can_be_changed(self):
        dataset = collect(WIDENING, memory_bytes_max=0)
        long = dataset.filter(lambda row: row["text"] is not None, keep_in_memory=True)
        assert long["text"][:] == ["一", "二", "三"]


class TestIterateTables:
    @settings(deadline=None)
    @given(
        sizes=st.lists(st.integers(0, 5), max_size=6),
        rows=st.integers(1, 7),
        data=st.data(),
        memory_bytes_max=st.sampled_from([0, 2**20]),
    )
    def test_equals_the_rows_one_by_one(self, sizes, rows, data, memory_bytes_max):
        numbers = iter(range(100))
        chunks = [[next(numbers) for _ in range(size)] for size in sizes]
        tables = [
            pa.table(
                {"n": pa.array(chunk, pa.int64()), "t": pa.array(map(str, chunk), pa.string())}
            )
            for chunk in chunks
        ]
        dataset = collect(tables, memory_bytes_max=memory_bytes_max)
        if len(dataset):
            picks = st.lists(st.integers(0, len(dataset) - 1), max_size=12)
            indices = data.draw(st.none() | picks | picks.map(sorted))
            if indices is not None:
                dataset = dataset.select(indices)
        tables = list(iterate_tables(dataset, rows=rows))
        assert rows_of(tables) == dataset.to_list()
        assert all(table.num_rows == rows for table in tables[:-1])
        assert all(0 < table.num_rows <= rows for table in tables)

    def test_columns_in_the_given_order(self):
        dataset = collect(WIDENING).select([7, 2])
        (table,) = iterate_tables(dataset, columns=["count", "text"])
        assert table.column_names == ["count", "text"]
        assert table.to_pylist() == [{"count": None, "text": "三"}, {"count": 1.5, "text": "一"}]

    def test_plain(self):
        (table,) = iterate_tables(Dataset.from_list([{"text": "一"}]))
        assert isinstance(table, pa.Table)
        assert table.schema.metadata is None

    @pytest.mark.parametrize("indices", [None, range(1, 4)])
    def test_consecutive_rows_are_not_copied(self, indices):
        dataset = Dataset.from_dict({"text": ["一" * 1000] * 5})
        if indices is not None:
            dataset = dataset.select([*indices]).select(range(len(indices)))
        (table,) = iterate_tables(dataset)
        address = dataset.data.column("text").chunk(0).buffers()[2].address
        assert table["text"].chunk(0).buffers()[2].address == address

    def test_of_concatenated_datasets(self):
        parts = [Dataset.from_dict({"n": [1, 2, 3]}), Dataset.from_dict({"n": [4]})]
        whole = concatenate_datasets(parts).select([3, 0, 3])
        assert rows_of(iterate_tables(whole, rows=2)) == [{"n": 4}, {"n": 1}, {"n": 4}]
