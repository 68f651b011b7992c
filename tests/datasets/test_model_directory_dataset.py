import json

import pytest
import torch
from safetensors.torch import save_file

from ja_instruct.datasets import ModelDirectoryDataset
from ja_instruct.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    return ModelDirectoryDataset(filepath=tmp_path / "model", model_id="owner/name")


def test_configuration_is_available_without_weights(dataset, tmp_path):
    assert dataset.peek_config() is None
    (tmp_path / "model").mkdir()
    assert dataset.peek_config() is None
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "gemma2"}), "utf-8")
    assert dataset.peek_config() == {"model_type": "gemma2"}


def write_model(directory, dtype, **config):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    save_file({"weight": torch.zeros(2, 2).to(dtype)}, directory / "model.safetensors")


def test_16_bit_model_is_loaded(dataset, tmp_path):
    write_model(tmp_path / "model", torch.bfloat16)
    model = dataset.load()
    assert (model.path, model.model_id) == (tmp_path / "model", "owner/name")


@pytest.mark.parametrize(
    ("dtype", "config", "message"),
    [
        (torch.uint8, {}, r"'weight' in .*model\.safetensors has weights of type U8"),
        (torch.bfloat16, {"quantization_config": {"quant_method": "awq"}}, r"already \(awq\)"),
    ],
)
def test_quantized_model_is_refused(dataset, tmp_path, dtype, config, message):
    write_model(tmp_path / "model", dtype, **config)
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=f"{message}.*product of this project alone"):
            read()


def test_file_of_the_index_that_is_missing(dataset, tmp_path):
    write_model(tmp_path / "model", torch.bfloat16)
    index = {
        "metadata": {},
        "weight_map": {"weight": "model.safetensors", "b": "second.safetensors"},
    }
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(InputError, match=r"index\.json lists 1 file.* such as second\.safetensors"):
        dataset.check()
