"""Target modules that the model does not have are refused; packed weights count as matrices."""

import pytest

from ja_instruct.datasets import QuantizedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.backends import adapt_with_peft
from ja_instruct.pipelines.sft.target_modules import unknown_targets

TARGETS = ("q_proj", "mlp.up_proj", "query_key_value", "upproj", "input_layernorm", "self_attn")
UNKNOWN = ("query_key_value", "upproj", "input_layernorm", "self_attn")


def test_before_the_run(tiny_nf4):
    names = QuantizedModelDataset(filepath=tiny_nf4.path).module_names()
    problems = unknown_targets(TARGETS, names)
    assert [problem.partition(" is not a linear layer")[0] for problem in problems] == [
        f"'{name}'" for name in UNKNOWN
    ]


def test_in_the_node(tiny_nf4, sft_parameters):
    parameters = sft_parameters(lora={"target_modules": list(TARGETS)})
    with pytest.raises(InputError, match=r"^'sft\.lora\.target_modules': 'query_key") as caught:
        adapt_with_peft(tiny_nf4, parameters)
    assert all(f"'{name}' is not a linear layer" in str(caught.value) for name in UNKNOWN)
