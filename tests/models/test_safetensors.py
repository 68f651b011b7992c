import json

import pytest
import torch
from safetensors.torch import save_file

from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory, parameter_count, refuse_quantized
from ja_instruct.models.safetensors import TensorHeader, read_headers


@pytest.fixture
def two_files(tmp_path):
    save_file({"b": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}), "utf-8")
    return tmp_path


def test_headers_of_all_files(two_files):
    found = read_headers(two_files)
    assert list(found.values()) == [
        TensorHeader(two_files / "model-1.safetensors", "b", "F32", (2, 3)),
        TensorHeader(two_files / "model-2.safetensors", "a", "BF16", (4,)),
    ]
    assert parameter_count(two_files) == 10


def test_tensors_are_loaded_from_their_files(two_files):
    headers = read_headers(two_files)
    assert headers["b"].load().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert headers["a"].load().dtype == torch.bfloat16


def test_interrupted_download_is_reported(two_files):
    path = two_files / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{path}: not a complete safetensors file"):
        read_headers(two_files)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.uint8, "U8"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_weights_below_16_bits_are_refused(two_files, dtype, name):
    packed = {"layers.0.weight": torch.zeros(4, 4).to(dtype)}
    save_file(packed, two_files / "model-3.safetensors")
    message = (
        f"'owner/name': 'layers.0.weight' in {two_files}/model-3.safetensors has weights of type "
        f"{name}, .*16-bit weights, so that the 4-bit model is the product of this project alone"
    )
    with pytest.raises(InputError, match=message):
        refuse_quantized(ModelDirectory(two_files, "owner/name"))


def test_16_and_32_bits_are_accepted(two_files):
    save_file({"c": torch.ones(2, dtype=torch.float16)}, two_files / "model-3.safetensors")
    refuse_quantized(ModelDirectory(two_files, "owner/name"))


def test_quantization_of_a_multimodal_models_text_part(two_files):
    config = {"text_config": {"quantization_config": {"quant_method": "gptq"}}}
    (two_files / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(InputError, match=r"'owner/name' at .* quantized already \(gptq\)"):
        refuse_quantized(ModelDirectory(two_files, "owner/name"))
