"""Packages, modules and figures of a training, before its first node."""

import pytest
from datasets import Dataset, DatasetDict
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import ModelDirectoryDataset, QuantizedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.pipeline_registry import register_pipelines
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.sft import trainer_names
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.preflight.training import (
    check_steps,
    nodes_with_unknown_steps,
    training_problems,
    warn_of_lengths,
)

TARGETS = ["q_proj", "query_key_value", "upproj", "input_layernorm", "self_attn"]
NOT_A_LAYER = "is not a linear layer of the model's blocks"
PROBLEMS = [
    f"'query_key_value' {NOT_A_LAYER}, which have down_proj, gate_proj, k_proj, o_proj, q_proj, ",
    f"'upproj' {NOT_A_LAYER}; did you mean 'up_proj'?",
    f"'input_layernorm' {NOT_A_LAYER}",
    f"'self_attn' {NOT_A_LAYER}",
]


@pytest.fixture
def section(read_parameters):
    return read_parameters("test")["sft"]


@pytest.fixture
def problems(section, tmp_path):
    def find(names=("sft",), base_model=None, quantized_model=None, **changes):
        parts = {key: {**section[key], **changes.pop(key, {})} for key in ("lora", "training")}
        parameters = SftParameters(**{**section, **parts, **changes})
        never_made = QuantizedModelDataset(filepath=tmp_path / "never_made")
        catalog = DataCatalog(
            {
                "base_model": base_model or MemoryDataset(),
                "quantized_model": quantized_model or never_made,
                "params:sft": MemoryDataset(parameters),
            }
        )
        registered = register_pipelines()
        nodes = sum((registered[name] for name in names), pipeline([])).nodes
        return training_problems(nodes, catalog)

    return find


class TestPackages:
    def test_installed_ones_are_no_problem(self, problems):
        assert problems(training={"report_to": ["mlflow"], "optim": "adamw_8bit"}) == []

    def test_missing_ones_have_key_and_command(self, problems, monkeypatch):
        monkeypatch.setattr(trainer_names, "find_spec", lambda name: name == "mlflow" or None)
        training = {"report_to": ["mlflow", "wandb", "tensorboard"], "optim": "stable_adamw"}
        needs = "needs a package that is not installed: pip install"
        assert problems(training=training) == [
            f"'sft.training.optim' = 'stable_adamw' {needs} torch-optimi",
            f"'sft.training.report_to' = 'wandb' {needs} wandb",
            f"'sft.training.report_to' = 'tensorboard' {needs} tensorboard",
        ]

    def test_other_pipelines_need_none(self, problems):
        assert problems(["data_filtering", "quantization"], training={"report_to": "wandb"}) == []


class TestTargetModules:
    def expect(self, found):
        assert len(found) == len(PROBLEMS)
        for one, expected in zip(found, PROBLEMS, strict=True):
            assert one.startswith(f"'sft.lora.target_modules': {expected}")

    def test_of_the_base_model_if_the_run_quantizes_it(self, problems, tiny_gemma2, tmp_path):
        base = ModelDirectoryDataset(filepath=tiny_gemma2.path)
        both = ("quantization", "sft")
        self.expect(problems(both, base, lora={"target_modules": TARGETS}))
        never_made = ModelDirectoryDataset(filepath=tmp_path / "never_made")
        assert problems(both, never_made, lora={"target_modules": TARGETS}) == []

    def test_base_model_counts_and_not_what_an_earlier_run_made_of_another(
        self, problems, tiny_gemma2, tmp_path, monkeypatch
    ):
        other = QuantizedModelDataset(filepath=tmp_path)
        monkeypatch.setattr(QuantizedModelDataset, "module_names", lambda self: {"h.0.query"})
        base = ModelDirectoryDataset(filepath=tiny_gemma2.path)
        assert problems(("quantization", "sft"), base, other) == []
        assert problems(("quantization", "sft"), None, other) == []
        assert len(problems(("sft",), base, other)) == 7


class TestLengths:
    @pytest.fixture
    def warn(self, read_parameters, tmp_path, caplog):
        """Return a function that returns what is logged of a model with this configuration."""
        sections = read_parameters("base")

        def warn(config):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(QuantizedModelDataset, "peek_config", lambda self: config)
                parameters = {
                    "params:sft": MemoryDataset(SftParameters(**sections["sft"])),
                    "params:inference": MemoryDataset(InferenceParameters(**sections["inference"])),
                }
                entries = {
                    "quantized_model": QuantizedModelDataset(filepath=tmp_path),
                    **parameters,
                }
                registered = register_pipelines()
                nodes = (registered["sft"] + registered["inference"]).nodes
                warn_of_lengths(nodes, DataCatalog(entries))
            return caplog.messages

        return warn

    def test_within_the_models(self, warn):
        for config in ({"max_position_embeddings": 4096}, {}, None):
            assert warn(config) == []

    def test_beyond_the_models(self, warn):
        beyond = "positions: it was not made for longer texts; lower max_seq_length"
        in_part = {"text_config": {"max_position_embeddings": 1024}}
        assert warn({"max_position_embeddings": 512, **in_part}) == [
            f"sft.max_seq_length = 2048, but the model has 1024 {beyond}",
            f"inference.max_seq_length = 4096, but the model has 1024 {beyond}",
        ]


class TestStepCounts:
    @pytest.fixture
    def run(self, section, caplog):
        """Return a function that finds problems in a run with these pairs and these nodes.

        After those come the problems before the node ``train``, if it is checked again then.
        """

        def find(pairs=(40, 10), *, only="sft", samples=(9, 3), **training):
            section["training"] |= {"max_steps": -1, "num_train_epochs": 1, **training}
            parameters = SftParameters(**{**section, "eval_fraction": 0.1})
            datasets = {
                "filtered_pairs": [{"instruction": "問", "response": "答"}] * pairs[0],
                "qa_pairs": [{"input": "問", "output": "答"}] * pairs[1],
                "train_dataset": [{"prompt": "問", "completion": "答"}] * samples[0],
                "eval_dataset": [{"prompt": "問", "completion": "答"}] * samples[1],
                "params:sft": parameters,
            }
            catalog = DataCatalog({name: MemoryDataset(one) for name, one in datasets.items()})
            whole = register_pipelines()
            pipelines = {
                "sft": whole["sft"],
                "train": whole["sft"].only_nodes("train"),
                "filter": whole["data_filtering"] + whole["sft"],
            }
            nodes = pipelines[only].nodes
            problems = training_problems(nodes, catalog)
            for node in nodes_with_unknown_steps(nodes):
                assert node.name == "train"
                assert not caplog.text
                check_steps(node, catalog)
            return problems

        return find

    def test_of_pairs_on_disk(self, run, caplog):
        assert run(warmup_steps=12) == []  # 40 - 4 + 10 samples, 2 x 2 a step
        assert "sft.training.warmup_steps = 12, but training ends after 12 steps" in caplog.text
        caplog.clear()
        assert run(warmup_steps=11) == []
        assert caplog.text == ""

    @pytest.mark.parametrize("only", ["sft", "train"])
    def test_of_a_dataset_with_one_split(self, run, caplog, monkeypatch, only):
        load = DataCatalog.load

        def load_splits(self, name):
            data = load(self, name)
            is_data = isinstance(data, list)
            return DatasetDict({"train": Dataset.from_list(data)}) if is_data else data

        monkeypatch.setattr(DataCatalog, "load", load_splits)
        steps = {"sft": 12, "train": 3}[only]
        assert run(only=only, warmup_steps=steps, save_steps=2) == []
        assert f"but training ends after {steps} steps" in caplog.text

    def test_of_samples_on_disk(self, run, caplog):
        assert run(only="train", warmup_steps=9, save_steps=3) == []
        assert "sft.training.warmup_steps = 9, but training ends after 3 steps" in caplog.text

    def test_errors_are_problems(self, run):
        by_steps = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 50}
        (problem,) = run(early_stopping_patience=1, eval_steps=50, **by_steps)
        assert problem.startswith("sft.training.early_stopping_patience = 1 needs evaluations, but")

    def test_before_the_node_if_pairs_are_filtered_in_this_run(self, run, caplog):
        assert run(only="filter", warmup_steps=9, save_steps=3) == []
        assert "sft.training.warmup_steps = 9, but training ends after 3 steps" in caplog.text
        by_steps = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 50}
        caplog.clear()
        with pytest.raises(InputError, match="patience = 1 needs evaluations, but training ends"):
            run(only="filter", early_stopping_patience=1, eval_steps=50, **by_steps)
