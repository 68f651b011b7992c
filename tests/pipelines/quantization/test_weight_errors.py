import shutil

import pytest
import torch
from bitsandbytes.utils import unpack_tensor_to_dict
from safetensors.torch import load_file, save_file

from ja_instruct.errors import InputError
from ja_instruct.pipelines.quantization.weight_errors import relative_errors, summarize_errors


@pytest.fixture(scope="module")
def errors(tiny_gemma2, tiny_nf4):
    return relative_errors(tiny_gemma2.path, tiny_nf4.path, "cpu")


def dequantize_by_hand(saved, name):
    """Multiply each code's value by its block's constant, which is quantized itself."""
    (state,) = (key for key in saved if key.startswith(f"{name}.quant_state"))
    notes = unpack_tensor_to_dict(saved[state])
    packed = saved[name].flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    constants = saved[f"{name}.nested_quant_map"][saved[f"{name}.absmax"].long()]
    scales = saved[f"{name}.nested_absmax"].repeat_interleave(notes["nested_blocksize"])
    constants = constants * scales[: len(constants)] + notes["nested_offset"]
    values = saved[f"{name}.quant_map"][codes]
    return (values * constants.repeat_interleave(notes["blocksize"])).reshape(notes["shape"])


def test_errors_are_those_by_hand(errors, tiny_gemma2, tiny_nf4):
    original = load_file(tiny_gemma2.path / "model.safetensors")
    saved = load_file(tiny_nf4.path / "model.safetensors")
    names = [name for name in original if "_proj" in name]
    # one a layer and kind
    assert len(names) == 14
    assert errors == pytest.approx(
        {
            name: float(
                (dequantize_by_hand(saved, name) - original[name]).norm() / original[name].norm()
            )
            for name in names
        },
        rel=1e-5,
    )


def test_a_worse_matrix_is_detected(tiny_gemma2, tiny_nf4, tmp_path, errors):
    copy = shutil.copytree(tiny_gemma2.path, tmp_path / "worse")
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name] * 2
    save_file(weights, copy / "model.safetensors")
    found = relative_errors(copy, tiny_nf4.path, "cpu")
    assert found.pop(name) == pytest.approx(0.5, abs=0.01)
    assert summarize_errors({**errors, name: 0.5})["worst"][0]["matrix"] == name
    assert found == {key: value for key, value in errors.items() if key != name}


def test_a_value_that_is_not_finite_is_refused(tiny_gemma2, tiny_nf4, tmp_path):
    copy = shutil.copytree(tiny_gemma2.path, tmp_path / "damaged")
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][0, 0] = torch.nan
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(InputError, match=rf"{copy}/model.safetensors: '{name}' holds values"):
        relative_errors(copy, tiny_nf4.path, "cpu")


def test_another_models_directory_is_refused(tiny_nf4, tmp_path):
    save_file({"model.other.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"is not in {tmp_path}, so it was not made from"):
        relative_errors(tmp_path, tiny_nf4.path, "cpu")


def test_summary(errors):
    summary = summarize_errors(errors)
    assert summary["mean"] == pytest.approx(sum(errors.values()) / 14, abs=1e-6)
    assert summary["max"] == pytest.approx(max(errors.values()), abs=1e-6)
    assert set(summary["by_matrix"]) == set(errors)
    assert sum(kind["matrices"] for kind in summary["by_kind"].values()) == 14
    named = [one["relative_error"] for one in summary["worst"]]
    assert len(named) == 10
    assert named == sorted(named, reverse=True)
    assert named[0] == summary["max"]
