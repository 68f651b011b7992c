import pytest
from gemma_shapes import base_model_in
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import HubModelDataset
from ja_instruct.pipelines.inference import create_pipeline
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.sft.parameters import SftParameters

NODES = ("answer_tasks", "answer_with_base_model")


@pytest.fixture
def change(read_parameters):
    """A function to the parameters of ``base`` with changes."""
    section = read_parameters("base")["inference"]

    def change(batching=(), **changes):
        batching = {**section["batching"], **dict(batching)}
        return InferenceParameters(**{**section, "batching": batching, **changes})

    return change


@pytest.fixture(params=["typed", "untyped"])
def sft(request, read_parameters):
    """The adapter's parameters; they are not typed if no node of the run uses them."""
    section = read_parameters("base")["sft"]
    return SftParameters(**section) if request.param == "typed" else section


@pytest.fixture
def resources(change, tmp_path):
    """A function to what a node declares with parameters of ``base`` and changes."""
    gemma = base_model_in(tmp_path)

    def declare(node_name, *, sft=None, base_model=gemma, namespace=None, **changes):
        whole = create_pipeline()
        parts = pipeline(whole, namespace=namespace) if namespace else whole
        (node,) = (node for node in parts.nodes if node.func.__name__ == node_name)
        (name,) = (name for name in node.inputs if name.endswith("inference"))
        entries = {name: MemoryDataset(change(**changes)), "base_model": base_model}
        if sft is not None:
            entries["params:sft"] = MemoryDataset(sft)
        return node.func.gpu_resources(node, DataCatalog(entries))

    return declare


# 456.8 million weights, in float32 or bfloat16
@pytest.mark.parametrize(
    ("engine", "key", "bytes_per_weight"),
    [("one_by_one", "memory_gb", 4), ("batched", "memory_min_gb", 2)],
)
def test_adapter_adds_its_weights_to_the_model(resources, sft, engine, key, bytes_per_weight):
    tuned, plain = (resources(name, engine=engine, sft=sft) for name in NODES)
    for found in (tuned, plain):
        assert found["devices"] == 1
        assert 16 < found[key] < 24
        assert found[key] == pytest.approx(sum(found["parts_gb"].values()))
        assert "inference.max_seq_length" in found["remedy"]
    assert tuned[key] - plain[key] == pytest.approx(0.4568 * bytes_per_weight, rel=1e-3)


def test_longer_prompts_need_more(resources):
    short, long = (
        resources(NODES[1], engine="one_by_one", max_seq_length=length)["parts_gb"]
        for length in (2048, 8192)
    )
    # half of the layers have a window of 4,096 tokens
    assert long["kv_cache"] == pytest.approx(3 * short["kv_cache"])
    assert long["weights"] == short["weights"]


def test_batched_engine_has_a_minimum_and_a_limit(resources, sft):
    found, limited, too_little = (
        resources(NODES[0], sft=sft, batching={"memory_gb": limit}) for limit in (None, 40.0, 4.0)
    )
    # without a limit it uses the whole device
    assert "memory_gb" not in found
    assert 18 < found["memory_min_gb"] < 24
    assert 40 < limited["memory_gb"] < 41
    assert too_little["memory_gb"] == too_little["memory_min_gb"]


def test_weights_in_bf16_take_two_bytes(resources, sft):
    found = resources(NODES[0], sft=sft, batching={"weights": "bf16"})
    assert found["parts_gb"]["weights"] == pytest.approx(2 * 27.227, rel=1e-4)
    assert found["remedy"].startswith("set inference.batching.weights to nf4, or set ")


def test_int8_kv_cache_takes_half(resources, sft):
    found, other = (
        resources(NODES[0], sft=sft, batching={"kv_cache_dtype": kind}) for kind in ("auto", "int8")
    )
    # two bytes per number, or one and a scale of four bytes per 128 numbers
    cache, smaller = (one["parts_gb"]["kv_cache"] for one in (found, other))
    assert smaller == pytest.approx(cache * 132 / 256)
    assert other["memory_min_gb"] == pytest.approx(found["memory_min_gb"] - cache + smaller)
    remedy = "set inference.batching.kv_cache_dtype to int8, or lower inference.max_seq_length"
    assert found["remedy"].startswith(remedy)
    assert other["remedy"].startswith("lower inference.max_seq_length")


def test_adapter_of_unknown_size_has_no_estimate(resources):
    assert set(resources(NODES[0], engine="one_by_one")) == {"devices", "remedy"}


@pytest.mark.parametrize("name", NODES)
def test_missing_model_has_no_estimate(resources, name, sft):
    entry = HubModelDataset(repo_id="owner/none")
    found = resources(name, engine="one_by_one", base_model=entry, sft=sft)
    assert set(found) == {"devices", "remedy"}


@pytest.mark.parametrize("name", NODES)
def test_names_may_carry_a_namespace(resources, name, sft):
    found, plain = (
        resources(name, engine="one_by_one", sft=sft, namespace=one) for one in ("trial_a", None)
    )
    assert found["memory_gb"] == plain["memory_gb"]
    assert "trial_a.inference.top_k" in found["remedy"]


@pytest.mark.parametrize("name", NODES)
def test_cpu_needs_no_device(resources, name):
    assert resources(name, engine="one_by_one", device="cpu") == {"devices": 0}


def test_build_prompts_does_not_use_a_gpu():
    (node,) = (node for node in create_pipeline().nodes if node.name == "build_prompts")
    assert not hasattr(node.func, "gpu_resources")
    assert "gpu" not in node.tags


@pytest.mark.parametrize(
    ("device", "backend", "devices", "message"),
    [
        ("cuda", "unsloth", 2, "gpu.devices = 2, but .* would only repeat the work"),
        ("cpu", "transformers", 1, "device 'cpu' uses none"),
    ],
)
def test_unusable_devices_are_refused(change, device, backend, devices, message):
    gpu = {"devices": devices, "memory_gb": None, "disk_gb": None}
    with pytest.raises(ValueError, match=message):
        change(engine="one_by_one", device=device, backend=backend, gpu=gpu)
