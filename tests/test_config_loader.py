import pytest
import yaml

from ja_instruct.config_loader import CatalogConfigLoader


@pytest.fixture
def read_catalog(tmp_path):
    """A function from the entries of ``base`` and of another environment to that one's catalog."""

    def read(base, mine):
        for name, entries in (("base", base), ("mine", mine)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "catalog.yml").write_text(yaml.safe_dump(entries), "utf-8")
        return CatalogConfigLoader(
            str(tmp_path), env="mine", base_env="base", default_run_env="local"
        )["catalog"]

    return read


def entry(name):
    return {"type": "ja_instruct.datasets.JSONLinesDataset", "filepath": f"{name}.jsonl"}


@pytest.mark.parametrize(
    ("base", "mine", "pool"),
    [
        ({"qa_pairs": "a"}, {}, "a"),
        ({"qa_pairs": "a"}, {"qa_pairs": "b"}, "b"),
        ({"qa_pairs": "a"}, {"few_shot_pool": "c"}, "c"),
        ({"qa_pairs": "a", "few_shot_pool": "c"}, {"qa_pairs": "b"}, "c"),
    ],
)
def test_the_pool_of_examples_is_qa_pairs_unless_it_has_an_entry(read_catalog, base, mine, pool):
    base, mine = ({name: entry(file) for name, file in entries.items()} for entries in (base, mine))
    catalog = read_catalog(base, mine)
    assert catalog["few_shot_pool"] == entry(pool)
    assert catalog["qa_pairs"] == {**base, **mine}["qa_pairs"]


def test_a_catalog_without_pairs_stays(read_catalog):
    assert read_catalog({"tasks": entry("a")}, {}) == {"tasks": entry("a")}
