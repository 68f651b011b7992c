import dataclasses

import pytest
import torch
from gemma_shapes import GEMMA_2_27B, base_model_in, write_config
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import HubModelDataset, QuantizedModelDataset
from ja_instruct.memory.estimates import ModelShape, lora_weights
from ja_instruct.models.directory import write_provenance
from ja_instruct.pipelines.sft import create_pipeline
from ja_instruct.pipelines.sft.gpu_resources import optimizer_bytes, training_parts


@pytest.fixture
def quantized_model(tmp_path):
    """An entry whose model does not exist yet."""
    return QuantizedModelDataset(filepath=tmp_path / "quantized_model")


@pytest.fixture
def base_model(tmp_path):
    return base_model_in(tmp_path)


@pytest.fixture
def sft(base_parameters):
    return base_parameters


def resources(parameters, entries, namespace=None):
    whole = create_pipeline()
    parts = pipeline(whole, namespace=namespace) if namespace else whole
    (node,) = (node for node in parts.nodes if node.func.__name__ == "train")
    (name,) = (name for name in node.inputs if name.startswith("params:"))
    catalog = DataCatalog({name: MemoryDataset(parameters), **entries})
    return node.func.gpu_resources(node, catalog)


def test_recipe_fits_a_gpu_of_32_gb(sft, base_model, quantized_model):
    found = resources(sft(), {"base_model": base_model, "quantized_model": quantized_model})
    assert found["devices"] == 1
    assert 23 < found["memory_gb"] < 32
    assert found["memory_gb"] == pytest.approx(sum(found["parts_gb"].values()))
    assert {"weights", "lora", "gradients", "optimizer", "activations"} <= set(found["parts_gb"])
    # 456 million weights: the adapter, and ten checkpoints with the optimizer's states
    assert found["disk_gb"] == pytest.approx(0.4568 * (4 + 10 * 6), rel=1e-3)


def test_without_checkpoints_the_disk_holds_the_adapter(sft, base_model):
    found = resources(sft(training={"save_strategy": "no"}), {"base_model": base_model})
    assert found["disk_gb"] == pytest.approx(0.4568 * 4, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "peft"},
        {"max_seq_length": 4096},
        {"training": {"per_device_train_batch_size": 8}},
        {"training": {"optim": "adamw_torch"}},
        {"training": {"gradient_checkpointing": False}},
        {"lora": {"lora_r": 128}},
    ],
    ids=str,
)
def test_remedy_names_each_setting_that_takes_memory(sft, base_model, changes):
    recipe = resources(sft(), {"base_model": base_model})
    found = resources(sft(**changes), {"base_model": base_model})
    assert found["memory_gb"] > recipe["memory_gb"] + 1
    *_, (key, value) = changes.items()
    key = next(iter(value)) if isinstance(value, dict) else key
    assert key in found["remedy"]


def test_tokens_per_batch_replace_its_samples(sft, base_model):
    def memory(name="memory_gb", **changes):
        return resources(sft(**changes), {"base_model": base_model})[name]

    samples = {"per_device_train_batch_size": 4}  # of 2048 tokens
    for packing in (False, True):
        tokens = {"tokens_per_batch": 8192, "packing": packing}
        assert memory(training=tokens) == memory(training=samples)
        # the size of the step does not matter
        assert memory(training={**tokens, "per_device_train_batch_size": 16}) == memory()
    more = {"tokens_per_batch": 16384}
    assert memory(training=more) == memory(training={"per_device_train_batch_size": 8})
    # at least one sample
    assert memory("memory_min_gb", training=more) == memory("memory_min_gb")
    assert memory("memory_min_gb") == memory(training={"tokens_per_batch": 2048})


def test_remedy_names_tokens_per_batch_if_it_can_be_lower(sft, base_model):
    def remedy(tokens):
        parameters = sft(training={"tokens_per_batch": tokens})
        return resources(parameters, {"base_model": base_model})["remedy"]

    assert "lower sft.training.tokens_per_batch (now 8192; the optimizer's" in remedy(8192)
    assert "per_device_train_batch_size" not in remedy(8192)
    # a batch has at least one sample
    assert "tokens_per_batch" not in remedy(2048)
    assert "tokens_per_batch" not in remedy(None)


def test_existing_quantized_model_counts_before_the_base_model(
    sft, base_model, quantized_model, tmp_path
):
    directory = write_config(tmp_path / "quantized_model", num_hidden_layers=23)
    entries = {"base_model": base_model, "quantized_model": quantized_model}
    whole = resources(sft(), entries)["parts_gb"]["weights"]
    write_provenance(directory, {"stage": "quantization"})
    half = resources(sft(), entries)["parts_gb"]["weights"]
    assert half == pytest.approx((whole - 2.36) / 2 + 2.36, rel=1e-2)


@pytest.mark.parametrize("own", ["", "trial_a."])
def test_names_may_carry_a_namespace(sft, base_model, quantized_model, own):
    entries = {f"{own}base_model": base_model, "trial_a.quantized_model": quantized_model}
    found = resources(sft(), entries, namespace="trial_a")
    assert found["memory_gb"] == resources(sft(), {"base_model": base_model})["memory_gb"]
    assert "trial_a.sft.max_seq_length" in found["remedy"]


def test_cpu_needs_no_device(sft, base_model):
    found = resources(sft(device="cpu", backend="peft"), {"base_model": base_model})
    assert found == {"devices": 0}


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["fc1"]}])
def test_unknown_models_and_modules_have_no_estimate(sft, base_model, lora):
    entry = base_model if lora else HubModelDataset(repo_id="owner/none")
    assert set(resources(sft(lora=lora), {"base_model": entry})) == {"devices", "remedy"}


def test_only_peft_uses_several_devices(sft, base_model):
    parameters = sft(backend="peft", gpu={"devices": 4})
    assert resources(parameters, {"base_model": base_model})["devices"] == 4
    with pytest.raises(ValueError, match=r"devices = 4, but backend 'unsloth' trains on one.*peft"):
        sft(gpu={"devices": 4})
    with pytest.raises(ValueError, match="device 'cpu' uses none"):
        sft(backend="peft", device="cpu", gpu={"devices": 1})
    assert sft(gpu={"devices": 1}).gpu.devices == 1


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("adamw_8bit", 2),
        ("paged_adamw_8bit", 2),
        ("paged_adamw_32bit", 8),
        ("adamw_torch_4bit", 1),
        ("ademamix", 12),
        ("paged_ademamix_8bit", 3),
        ("lion_32bit", 4),
        ("lion_8bit", 1),
        ("sgd", 0),
        ("an_unknown_one", 8),
    ],
)
def test_optimizer_states(optim, expected):
    assert optimizer_bytes(optim) == expected


def test_states_of_adam_are_those_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.grad = torch.zeros(1000)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    states = sum(t.nbytes for t in optimizer.state[weight].values() if t.dim())
    assert optimizer_bytes("adamw_torch") * weight.numel() == states


class TestParts:
    """gemma-2-27b's shape with batches of four samples of 1,024 tokens."""

    @pytest.fixture
    def parts(self, sft):
        def parts(backend="unsloth", gradient_checkpointing=True, **sizes):
            parameters = sft(backend=backend, gradient_checkpointing=gradient_checkpointing)
            shape = dataclasses.replace(ModelShape.from_config(GEMMA_2_27B), **sizes)
            lora = parameters.lora
            adapter = lora_weights(shape, lora.target_modules, lora.lora_r)
            return training_parts(shape, parameters, 4096, adapter)

        return parts

    def test_checkpoints_grow_with_the_layers_if_they_stay_on_the_device(self, parts):
        def activations(layers, **changes):
            return parts(windows=(None,) * layers, **changes)["activations"]

        checkpoint = 4096 * 4608 * 4
        assert activations(46, backend="peft") - activations(45, backend="peft") == checkpoint
        assert activations(46) == activations(45)
        assert activations(46, gradient_checkpointing=False) > 20 * activations(46)

    def test_peak_measured_with_unsloth_on_one_h100(self, parts):
        assert sum(parts().values()) == pytest.approx(23e9, rel=0.15)

    def test_peak_of_a_narrow_model_is_in_the_tiles_of_the_loss(self, parts):
        found = parts(intermediate_size=1, hidden_size=64, query_size=64, key_value_size=64)
        assert found["logits"] == 2 * 32_768 * (4096 + 64) + 4 * 4096 * 64
        assert parts()["logits"] == 0
