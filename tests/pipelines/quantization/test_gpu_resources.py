import pytest
from gemma_shapes import base_model_in
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import HubModelDataset
from ja_instruct.pipelines.quantization import create_pipeline
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

UNKNOWN = HubModelDataset(repo_id="owner/none")
NODES = pytest.mark.parametrize("node_name", ["quantize", "measure_quantization"])
# of 27.2 billion weights
DISK_GB = pytest.approx(27.227 * 1.5, rel=1e-3)


@pytest.fixture
def section(read_parameters):
    return read_parameters("base")["quantization"]


@pytest.fixture
def resources(section, tmp_path):
    """A function to what a node declares with parameters of ``base`` and changes."""
    gemma = base_model_in(tmp_path)

    def declare(node_name="quantize", base_model=gemma, parts=None, **changes):
        parts = parts or create_pipeline()
        (node,) = (node for node in parts.nodes if node.name.endswith(node_name))
        (name,) = (name for name in node.inputs if name.startswith("params:"))
        model = next(name for name in node.inputs if name.endswith("base_model"))
        parameters = MemoryDataset(QuantizationParameters(**{**section, **changes}))
        return node.func.gpu_resources(node, DataCatalog({name: parameters, model: base_model}))

    return declare


def test_weights_disk_and_parts_of_gemma_2_27b(resources):
    found = resources()
    assert found["devices"] == 1
    assert 15.8 < found["memory_gb"] < 20
    assert found["memory_gb"] == pytest.approx(sum(found["parts_gb"].values()))
    assert set(found["parts_gb"]) == {"weights", "matrix in flight", "cuda context"}
    # one matrix twice
    assert found["parts_gb"]["matrix in flight"] == pytest.approx(2 * 2 * 4608 * 36864 / 1e9)
    assert found["disk_gb"] == DISK_GB
    assert "quantization.device" in found["remedy"]


@pytest.mark.parametrize(
    "changes",
    [{"double_quantization": False}, {"compute_dtype": "float32"}, {"load_dtype": "float32"}],
    ids=str,
)
def test_larger_formats_take_more_memory(resources, changes):
    assert resources(**changes)["memory_gb"] > resources()["memory_gb"] + 1


@NODES
def test_cpu_needs_no_device(resources, node_name):
    disk = {"disk_gb": DISK_GB} if node_name == "quantize" else {}
    assert resources(node_name, device="cpu") == {"devices": 0, **disk}


@NODES
def test_missing_model_has_no_estimate(resources, node_name):
    assert set(resources(node_name, UNKNOWN)) == {"devices", "remedy"}


def test_disk_follows_from_the_number_of_weights_if_the_shape_is_unknown(resources, monkeypatch):
    monkeypatch.setattr(HubModelDataset, "parameter_count", lambda self: 2_000_000_000)
    found = resources(base_model=UNKNOWN)
    assert found["disk_gb"] == 3
    assert set(found) == {"devices", "remedy", "disk_gb"}


def test_measurement_of_gemma_2_27b_fits_24_gb(resources):
    found = resources("measure_quantization")
    assert 17 < found["memory_gb"] < 24
    assert found["memory_gb"] == pytest.approx(sum(found["parts_gb"].values()))
    assert set(found["parts_gb"]) == {"weights", "activations", "logits", "cuda context"}
    assert "quantization.perplexity_max_tokens" in found["remedy"]


def test_measurement_takes_memory_by_the_number_of_tokens(resources):
    none, fewer, more = (
        resources("measure_quantization", perplexity_max_tokens=tokens)["memory_gb"]
        for tokens in (0, 100_000, 200_000)
    )
    # four matrices of 4608 by 36864 in float32, and the context
    assert none == pytest.approx((16 * 4608 * 36864 + 600_000_000) / 1e9)
    assert more - fewer == pytest.approx(2 * 100_000 * 4608 * 2 / 1e9)


def test_names_may_carry_a_namespace(resources):
    found = resources(parts=pipeline(create_pipeline(), namespace="trial_a"))
    assert found["memory_gb"] == resources()["memory_gb"]
    assert "trial_a.quantization.device" in found["remedy"]


@pytest.mark.parametrize("devices", [None, 1])
def test_one_device(section, devices):
    gpu = {"devices": devices, "memory_gb": 12.5, "disk_gb": None}
    assert QuantizationParameters(**{**section, "gpu": gpu}).gpu.memory_gb == 12.5


@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [
        ("cuda", 2, "gpu.devices = 2, but .* would only repeat the work"),
        ("cuda", 0, "greater than or equal to 1"),
        ("cpu", 1, "device 'cpu' uses none; leave gpu.devices null"),
    ],
)
def test_other_devices_are_refused(section, device, devices, message):
    gpu = {"devices": devices, "memory_gb": None, "disk_gb": None}
    with pytest.raises(ValueError, match=message):
        QuantizationParameters(**{**section, "device": device, "gpu": gpu})


def test_every_key_is_required(section):
    with pytest.raises(ValueError, match=r"gpu\.disk_gb"):
        QuantizationParameters(**{**section, "gpu": {"devices": None, "memory_gb": None}})
