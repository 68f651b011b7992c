import pytest
from gemma_shapes import base_model_in
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import HubModelDataset
from ja_instruct.pipelines.quantization import create_pipeline
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters


@pytest.fixture
def base_model(tmp_path):
    return base_model_in(tmp_path)


@pytest.fixture
def section(read_parameters):
    return read_parameters("base")["quantization"]


def resources(parts, section, node_name="quantize", **changes):
    """Return what a node declares with the parameters of the environment ``base`` and changes."""
    (node,) = (node for node in parts.nodes if node.name.endswith(node_name))
    (name,) = (name for name in node.inputs if name.startswith("params:"))
    model = next(name for name in node.inputs if name.endswith("base_model"))
    parameters = QuantizationParameters(**{**section, **changes.pop("parameters", {})})
    catalog = DataCatalog({name: MemoryDataset(parameters), model: changes.pop("base_model")})
    return node.func.gpu_resources(node, catalog)


def test_weights_disk_and_parts_of_gemma_2_27b(section, base_model):
    found = resources(create_pipeline(), section, base_model=base_model)
    assert found["devices"] == 1
    assert 15.8 < found["memory_gb"] < 20
    assert found["memory_gb"] == pytest.approx(sum(found["parts_gb"].values()))
    assert set(found["parts_gb"]) == {"weights", "matrix in flight", "cuda context"}
    assert found["disk_gb"] == pytest.approx(27.227 * 1.5, rel=1e-3)
    assert "quantization.device" in found["remedy"]


@pytest.mark.parametrize(
    "changes", [{"double_quantization": False}, {"compute_dtype": "float32"}], ids=str
)
def test_larger_formats_take_more_memory(section, base_model, changes):
    plain = resources(create_pipeline(), section, base_model=base_model)
    more = resources(create_pipeline(), section, base_model=base_model, parameters=changes)
    assert more["memory_gb"] > plain["memory_gb"] + 1


NODES = pytest.mark.parametrize("node_name", ["quantize", "measure_quantization"])


@NODES
def test_cpu_needs_no_device(section, base_model, node_name):
    on_cpu = {"base_model": base_model, "parameters": {"device": "cpu"}}
    found = resources(create_pipeline(), section, node_name, **on_cpu)
    disk = {"disk_gb": pytest.approx(27.227 * 1.5, rel=1e-3)} if node_name == "quantize" else {}
    assert found == {"devices": 0, **disk}


def test_disk_follows_from_the_number_of_weights_if_the_shape_is_unknown(section, monkeypatch):
    unknown = HubModelDataset(repo_id="owner/none")
    monkeypatch.setattr(HubModelDataset, "parameter_count", lambda self: 2_000_000_000)
    found = resources(create_pipeline(), section, base_model=unknown)
    assert found["disk_gb"] == 3
    assert set(found) == {"devices", "remedy", "disk_gb"}


@NODES
def test_missing_model_has_no_estimate(section, node_name):
    unknown = HubModelDataset(repo_id="owner/none")
    found = resources(create_pipeline(), section, node_name, base_model=unknown)
    assert set(found) == {"devices", "remedy"}


def test_quantization_holds_one_matrix_twice(section, base_model):
    parts = resources(create_pipeline(), section, base_model=base_model)["parts_gb"]
    assert parts["matrix in flight"] == pytest.approx(2 * 2 * 4608 * 36864 / 1e9)


class TestMeasurement:
    @pytest.fixture
    def measured(self, section, base_model):
        def measured(**parameters):
            changes = {"base_model": base_model, "parameters": parameters}
            return resources(create_pipeline(), section, "measure_quantization", **changes)

        return measured

    def test_gemma_2_27b_fits_24_gb(self, measured):
        found = measured()
        assert 17 < found["memory_gb"] < 24
        assert found["memory_gb"] == pytest.approx(sum(found["parts_gb"].values()))
        assert set(found["parts_gb"]) == {"weights", "activations", "logits", "cuda context"}
        assert "quantization.perplexity_max_tokens" in found["remedy"]

    def test_matrices_alone_take_little(self, measured):
        # four matrices of 4608 by 36864 in float32, and the context
        expected = (16 * 4608 * 36864 + 600_000_000) / 1e9
        assert measured(perplexity_max_tokens=0)["memory_gb"] == pytest.approx(expected)

    def test_more_tokens_take_more(self, measured):
        found = measured(perplexity_max_tokens=200_000)["memory_gb"]
        added = found - measured(perplexity_max_tokens=100_000)["memory_gb"]
        assert added == pytest.approx(2 * 100_000 * 4608 * 2 / 1e9)


def test_names_may_carry_a_namespace(section, base_model):
    spaced = pipeline(create_pipeline(), namespace="trial_a")
    found = resources(spaced, section, base_model=base_model)
    plain = resources(create_pipeline(), section, base_model=base_model)
    assert found["memory_gb"] == plain["memory_gb"]
    assert "trial_a.quantization.device" in found["remedy"]


class TestParameters:
    @pytest.mark.parametrize("devices", [None, 1])
    def test_one_device(self, section, devices):
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
    def test_others_are_refused(self, section, device, devices, message):
        gpu = {"devices": devices, "memory_gb": None, "disk_gb": None}
        with pytest.raises(ValueError, match=message):
            QuantizationParameters(**{**section, "device": device, "gpu": gpu})

    def test_every_key_is_required(self, section):
        with pytest.raises(ValueError, match=r"gpu\.disk_gb"):
            QuantizationParameters(**{**section, "gpu": {"devices": None, "memory_gb": None}})
