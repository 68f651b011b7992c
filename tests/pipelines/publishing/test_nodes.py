import pytest

from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.publishing.nodes import (
    publish_adapter,
    publish_merged_model,
    publish_quantized_model,
)
from ja_instruct.pipelines.publishing.parameters import PublishingParameters

CHECKSUMS = {"model.safetensors": "c" * 64}


@pytest.fixture(scope="module")
def parameters(read_parameters):
    return PublishingParameters(**read_parameters("base")["publishing"])


@pytest.fixture
def make(tmp_path):
    return lambda **provenance: ModelDirectory(
        tmp_path, "owner/model", provenance={"weights_sha256": CHECKSUMS, **provenance}
    )


@pytest.mark.parametrize(
    ("revision", "expected"), [("a" * 40, "a" * 40), ("sha256:" + "b" * 64, None), (None, None)]
)
def test_adapter_has_the_hubs_name_of_its_base(make, parameters, revision, expected):
    adapter = make(base={"model_id": "google/gemma-2-27b", "revision": revision})
    assert publish_adapter(adapter, parameters).json_changes == {
        "adapter_config.json": {
            "base_model_name_or_path": "google/gemma-2-27b",
            "revision": expected,
        }
    }


def test_adapter_of_unknown_origin_is_published_as_it_is(make, parameters):
    assert publish_adapter(make(), parameters).json_changes == {}


def test_quantized_model_is_published_as_it_is(make, parameters, tmp_path):
    publication = publish_quantized_model(make(), parameters)
    assert publication.directory == tmp_path
    assert publication.weights_sha256 == CHECKSUMS
    assert publication.json_changes == {}
    assert publication.commit_message == "Upload by ja-instruct"


def test_merged_model_must_have_been_checked(make, parameters):
    model = make()
    report = {"weights_sha256": CHECKSUMS}
    assert publish_merged_model(model, report, parameters).weights_sha256 == CHECKSUMS
    for other in ({}, {"weights_sha256": {"model.safetensors": "d" * 64}}):
        with pytest.raises(InputError, match=r"does not describe .*check_merged_model"):
            publish_merged_model(model, other, parameters)
