import pytest
from gemma_shapes import base_model_in, write_config
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import HubModelDataset, QuantizedModelDataset
from ja_instruct.models.directory import write_provenance
from ja_instruct.pipelines.sft import create_pipeline
from ja_instruct.pipelines.sft.parameters import SftParameters


@pytest.fixture
def quantized_model(tmp_path):
    """A catalog entry whose model a run has yet to make."""
    return QuantizedModelDataset(filepath=tmp_path / "quantized_model")


@pytest.fixture
def base_model(tmp_path):
    return base_model_in(tmp_path)


@pytest.fixture
def sft(read_parameters):
    """The parameters of the environment ``base``, and those given."""

    def change(training=None, lora=None, **changes):
        section = read_parameters("base")["sft"]
        section["training"] |= training or {}
        section["lora"] |= lora or {}
        return SftParameters(**{**section, **changes})

    return change


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
    # 456 million weights: the adapter, and ten checkpoints of it with the optimizer's states
    assert found["disk_gb"] == pytest.approx(0.4568 * (4 + 10 * 6), rel=1e-3)


def test_nothing_is_kept_without_checkpoints(sft, base_model):
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
def test_each_way_out_of_memory_that_the_remedy_names(sft, base_model, changes):
    recipe = resources(sft(), {"base_model": base_model})
    found = resources(sft(**changes), {"base_model": base_model})
    assert found["memory_gb"] > recipe["memory_gb"] + 1
    *_, (key, value) = changes.items()
    key = next(iter(value)) if isinstance(value, dict) else key
    assert key in found["remedy"]


def test_tokens_of_a_batch_count_in_place_of_its_samples(sft, base_model):
    def memory(name="memory_gb", **changes):
        return resources(sft(**changes), {"base_model": base_model})[name]

    samples = {"per_device_train_batch_size": 4}  # of 2048 tokens
    for packing in (False, True):
        tokens = {"tokens_per_batch": 8192, "packing": packing}
        assert memory(training=tokens) == memory(training=samples)
        # the samples of the step are arranged, however many
        assert memory(training={**tokens, "per_device_train_batch_size": 16}) == memory()
    more = {"tokens_per_batch": 16384}
    assert memory(training=more) == memory(training={"per_device_train_batch_size": 8})
    # at least one sample
    assert memory("memory_min_gb", training=more) == memory("memory_min_gb")
    assert memory("memory_min_gb") == memory(training={"tokens_per_batch": 2048})


def test_remedy_names_the_tokens_of_a_batch_where_they_count(sft, base_model):
    def remedy(tokens):
        parameters = sft(training={"tokens_per_batch": tokens})
        return resources(parameters, {"base_model": base_model})["remedy"]

    assert "lower sft.training.tokens_per_batch (now 8192; the optimizer's" in remedy(8192)
    assert "per_device_train_batch_size" not in remedy(8192)
    # it cannot be less than a sample
    assert "tokens_per_batch" not in remedy(2048)
    assert "tokens_per_batch" not in remedy(None)


def test_model_that_is_there_counts_more_than_what_it_would_be_made_of(
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


@pytest.mark.parametrize("lora", [None, {"target_modules": ["lm_head"]}])
def test_unknown_models_and_modules_have_no_estimate(sft, base_model, lora):
    entry = base_model if lora else HubModelDataset(repo_id="owner/none")
    assert set(resources(sft(lora=lora), {"base_model": entry})) == {"devices", "remedy"}


def gpu(devices):
    return {"devices": devices, "memory_gb": None, "disk_gb": None}


def test_several_devices_with_peft_alone(sft, base_model):
    parameters = sft(backend="peft", gpu=gpu(4))
    assert resources(parameters, {"base_model": base_model})["devices"] == 4
    with pytest.raises(ValueError, match=r"devices = 4, but backend 'unsloth' trains on one.*peft"):
        sft(gpu=gpu(4))
    with pytest.raises(ValueError, match="device 'cpu' uses none"):
        sft(backend="peft", device="cpu", gpu=gpu(1))
    assert sft(gpu=gpu(1)).gpu.devices == 1
