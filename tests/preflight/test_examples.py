"""The number of examples against the size of their pool, before the first node."""

import json

import pytest
from kedro.io import DataCatalog, MemoryDataset

from ja_instruct.datasets import HubDataset, JSONLinesDataset, RetrievalIndexDataset
from ja_instruct.pipeline_registry import register_pipelines
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.preflight.examples import warn_of_small_pools
from ja_instruct.retrieval.index import RetrievalIndex

PAIRS = [{"input": f"問い{number}", "output": "答え"} for number in range(3)]


@pytest.fixture
def warn(read_parameters, tmp_path, caplog):
    """A function that returns the warnings about a number of examples."""
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)), "utf-8")
    index = RetrievalIndexDataset(filepath=tmp_path / "index")
    index.save(RetrievalIndex("bm25", tuple(pair["input"] for pair in PAIRS)))

    def call(top_k, nodes, pool=None):
        section = {**read_parameters("test")["inference"], "top_k": top_k}
        catalog = DataCatalog(
            {
                "few_shot_pool": pool or JSONLinesDataset(filepath=file),
                "retrieval_index": index,
                "params:inference": MemoryDataset(InferenceParameters(**section)),
            }
        )
        caplog.clear()
        warn_of_small_pools(register_pipelines()["__default__"].only_nodes(*nodes).nodes, catalog)
        return [record.getMessage() for record in caplog.records]

    return call


@pytest.mark.parametrize("nodes", [["build_prompts"], ["encode_pool", "build_prompts"]])
def test_more_examples_than_pairs(warn, nodes):
    assert warn(3, nodes) == []
    assert warn(4, nodes) == [
        "'inference.top_k' is 4, but 'few_shot_pool' has 3 pairs: each task gets all of them as "
        "examples"
    ]


def test_a_pool_of_the_hub_is_counted_by_its_index(warn):
    hub = HubDataset(dataset_name="owner/pairs")
    assert len(warn(4, ["build_prompts"], hub)) == 1
    assert warn(4, ["encode_pool", "build_prompts"], hub) == []


def test_without_prompts_nothing_is_read(warn):
    assert warn(4, ["encode_pool"]) == []
