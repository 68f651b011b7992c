from itertools import permutations
from pathlib import Path

import pytest
from kedro.pipeline import Pipeline

from ja_instruct.pipeline_registry import register_pipelines

# by pipeline: its free inputs, and the outputs that people and other programs rely on
CONTRACT = {
    "data_filtering": (
        "raw_conversations replacements banned_substrings banned_instruction_substrings "
        "target_tokenizer evaluation_tasks",
        "filtered_pairs rejected_pairs quarantined_records filter_report rejection_plot "
        "length_plot filter_page",
    ),
    "quantization": (
        "base_model perplexity_texts",
        "quantized_model quantization_report",
    ),
    "sft": (
        "filtered_pairs qa_pairs quantized_model",
        "train_dataset eval_dataset adapter train_metrics",
    ),
    "rag_index": ("few_shot_pool retriever_checkpoint encoding_cache", "retrieval_index"),
    "inference": (
        "tasks few_shot_pool retrieval_index retriever_checkpoint quantized_model adapter "
        "answer_store",
        "prompts answers inference_report",
    ),
    "reporting": (
        "filter_report quantization_report train_metrics loss_plot rag_index_report "
        "inference_report tasks base_answers answers",
        "run_report",
    ),
}
# not in ``__default__``
ON_REQUEST = {
    "export": ("base_model adapter", "merged_model export_report"),
    "gguf_export": ("gguf_converter merged_model", "gguf_model"),
    "publishing": (
        "quantized_model adapter merged_model export_report",
        "published_quantized_model published_adapter published_merged_model",
    ),
}
EVERY = {
    name: ({*inputs.split()}, {*outputs.split()})
    for name, (inputs, outputs) in {**CONTRACT, **ON_REQUEST}.items()
}
CONFIGURATION = Path(__file__).parents[1] / "conf"
ENVIRONMENTS = sorted(
    {
        path.parent.relative_to(CONFIGURATION).as_posix()
        for path in CONFIGURATION.rglob("*.yml")
        if path.parent.name != "word_lists" and path.parts[len(CONFIGURATION.parts)] != "local"
    }
    - {"."}
)
LAYERS = {"raw", "primary", "feature", "model_input", "models", "model_output", "reporting"}


@pytest.fixture(scope="module")
def pipelines():
    return register_pipelines()


@pytest.fixture(params=ENVIRONMENTS)
def catalog(request, read_configuration):
    return read_configuration(request.param)["catalog"]


def data_only(names):
    return {name for name in names if not name.startswith("params:")}


def test_names(pipelines):
    assert set(pipelines) == {*EVERY, "__default__"}


@pytest.mark.parametrize("name", EVERY)
def test_pipeline_keeps_the_contract(pipelines, name):
    inputs, outputs = EVERY[name]
    assert data_only(pipelines[name].inputs()) == inputs
    assert outputs <= pipelines[name].all_outputs()


def test_default_chains_all_pipelines_but_those_on_request(pipelines):
    everything = sum((pipelines[name] for name in CONTRACT), Pipeline([]))
    assert set(pipelines["__default__"].nodes) == set(everything.nodes)
    expected = (
        "raw_conversations replacements banned_substrings banned_instruction_substrings "
        "target_tokenizer evaluation_tasks base_model perplexity_texts qa_pairs few_shot_pool "
        "tasks retriever_checkpoint encoding_cache answer_store"
    )
    assert data_only(everything.inputs()) == {*expected.split()}


def test_default_neither_copies_nor_uploads_a_model(pipelines):
    on_request = sum((pipelines[name] for name in ON_REQUEST), Pipeline([]))
    default = pipelines["__default__"]
    assert not set(default.nodes) & set(on_request.nodes)
    assert not default.datasets() & on_request.all_outputs()


def test_first_stages_do_not_wait_for_each_other(pipelines):
    for one, other in permutations(("data_filtering", "quantization", "rag_index"), 2):
        assert not pipelines[one].inputs() & pipelines[other].all_outputs()


def test_every_node_is_tagged_with_its_pipeline(pipelines):
    for name in EVERY:
        assert all(name in node.tags for node in pipelines[name].nodes), name


@pytest.mark.parametrize("name", EVERY)
def test_catalog_holds_the_contract(catalog, name):
    inputs, outputs = EVERY[name]
    assert inputs | outputs <= set(catalog)


def test_catalog_holds_nothing_else(catalog, pipelines):
    """An entry that no pipeline uses is probably misspelt."""
    known = {name for pipeline in pipelines.values() for name in pipeline.datasets()}
    assert {name for name in catalog if not name.startswith("_")} <= known


def test_every_entry_has_its_layer_in_kedro_viz(catalog):
    layers = {name: entry["metadata"]["kedro-viz"]["layer"] for name, entry in catalog.items()}
    assert set(layers.values()) <= LAYERS
    assert {layers[name] for name in ("raw_conversations", "qa_pairs", "tasks")} == {"raw"}
    assert layers["adapter"] == layers["quantized_model"] == "models"
    assert layers["answers"] == "model_output"


def test_every_entry_can_be_instantiated(catalog):
    from kedro.io import DataCatalog

    made = DataCatalog.from_config(dict(catalog))
    assert {name for name in catalog if made.get(name) is None} == set()


def test_answers_are_called_output_jsonl(catalog):
    assert catalog["answers"]["filepath"].endswith("/output.jsonl")


def test_environments_do_not_overwrite_each_other(read_configuration):
    outputs = {name for _, outputs in EVERY.values() for name in outputs}
    written = {}
    for environment in ENVIRONMENTS:
        catalog = read_configuration(environment)["catalog"]
        for name in sorted(outputs):
            filepath = catalog[name]["filepath"]
            assert filepath not in written, f"{environment} and {written.get(filepath)}"
            written[filepath] = environment


def test_environments_exist():
    assert {"base", "demo", "test"} <= set(ENVIRONMENTS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_parameters_of_every_environment_are_accepted(read_parameters, pipelines, environment):
    from kedro.validation.type_extractor import TypeExtractor

    models = TypeExtractor(pipelines).extract_types_from_pipelines()
    sections = read_parameters(environment)
    assert {*models, "freshness"} == set(sections)  # which no node reads
    for name, model in models.items():
        model.model_validate(sections[name])


def test_listing_pipelines_imports_no_heavy_library(run_python):
    """``kedro registry list`` imports every pipeline; torch alone would take seconds."""
    heavy = ["bitsandbytes", "datasets", "peft", "plotly", "ragatouille", "torch", "transformers"]
    code = (
        "import sys\n"
        "from ja_instruct.pipeline_registry import register_pipelines\n"
        "register_pipelines()\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_python("-c", code).stdout == "[]\n"


def test_arrow_returns_freed_memory_to_the_system(run_python):
    code = "import ja_instruct.settings, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    assert run_python("-c", code).stdout == "system\n"
