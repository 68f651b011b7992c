import dataclasses
import sys
import types
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from ja_instruct.datasets import JSONLinesDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelArtifact
from ja_instruct.pipelines.sft import training
from ja_instruct.pipelines.sft.backends import (
    adapt_with_peft,
    adapt_with_unsloth,
)
from ja_instruct.pipelines.sft.nodes import build_datasets, plot_loss, train
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.prompts import training_prompt

FILTERED = Dataset.from_list(
    [{"id": i, "instruction": f"指示{i}", "response": f"応答{i}"} for i in range(20)]
)
WRITTEN = Dataset.from_list(
    [{"id": i, "input": f"質問{i}", "output": f"回答{i}"} for i in range(3)]
)


@pytest.fixture(scope="module")
def base(base_parameters):
    return base_parameters()


EARLY = {
    "early_stopping_patience": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 4,
}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}


def completions(dataset):
    return [sample["completion"] for sample in dataset]


class TestBuildDatasets:
    @pytest.fixture
    def build(self, prompts, tiny_nf4):
        def call(filtered, written, parameters, model=tiny_nf4, prompt_format="recipe"):
            texts = prompts.model_copy(update={"format": prompt_format})
            return build_datasets(filtered, written, model, texts, parameters)

        return call

    def test_filtered_pairs_come_first_then_the_written_ones(self, build, prompts, sft_parameters):
        train_dataset, evaluation = build(FILTERED, WRITTEN, sft_parameters(eval_fraction=0.0))
        assert completions(train_dataset) == [
            *(f"応答{i}" for i in range(20)),
            *(f"回答{i}" for i in range(3)),
        ]
        assert train_dataset["source"][:] == ["filtered_pairs"] * 20 + ["qa_pairs"] * 3
        assert train_dataset[21]["prompt"] == training_prompt(prompts, "質問1")
        assert len(evaluation) == 0

    def test_held_out_pairs_are_not_trained_on(self, build, sft_parameters):
        train_dataset, evaluation = build(FILTERED, WRITTEN, sft_parameters(eval_fraction=0.25))
        held_out = completions(evaluation)
        assert len(held_out) == 5
        assert evaluation["source"][:] == ["filtered_pairs"] * 5
        everything = [f"応答{i}" for i in range(20)]
        assert completions(train_dataset) == [
            *(answer for answer in everything if answer not in held_out),
            *(f"回答{i}" for i in range(3)),
        ]
        assert held_out == [answer for answer in everything if answer in held_out]

    def test_held_out_pairs_follow_the_seed_alone(self, build, sft_parameters):
        def held_out(seed):
            parameters = sft_parameters(eval_fraction=0.25, seed=seed)
            return completions(build(FILTERED, WRITTEN, parameters)[1])

        assert held_out(3407) == held_out(3407)
        assert held_out(3407) != held_out(1)

    def test_less_than_one_pair_holds_out_none(self, build, sft_parameters):
        few = FILTERED.select(range(9))
        train_dataset, evaluation = build(few, WRITTEN, sft_parameters(eval_fraction=0.1))
        assert (len(train_dataset), len(evaluation)) == (12, 0)

    @pytest.mark.parametrize("kind", [Dataset.to_list, lambda data: DatasetDict(train=data)])
    def test_other_kinds_of_data(self, build, sft_parameters, kind):
        train_dataset, _ = build(kind(FILTERED), kind(WRITTEN), sft_parameters(eval_fraction=0.0))
        assert len(train_dataset) == 23

    def test_empty_data_has_no_columns(self, build, sft_parameters):
        train, _ = build(Dataset.from_dict({}), WRITTEN, sft_parameters())
        assert set(train["source"]) == {"qa_pairs"}
        train, _ = build(FILTERED, [], sft_parameters())
        assert set(train["source"]) == {"filtered_pairs"}

    @pytest.mark.parametrize(
        ("filtered", "written", "message"),
        [
            (FILTERED.remove_columns("response"), WRITTEN, "'filtered_pairs' lacks .* response"),
            (FILTERED, WRITTEN.remove_columns("output"), "'qa_pairs' lacks .* output"),
            (FILTERED.select([]), WRITTEN.select([]), "both empty"),
            (FILTERED, DatasetDict(train=WRITTEN, test=WRITTEN), r"has 2 splits \(train, test\)"),
        ],
    )
    def test_unusable_data_is_refused(self, build, sft_parameters, filtered, written, message):
        with pytest.raises(InputError, match=message):
            build(filtered, written, sft_parameters())

    def test_training_prompt_has_the_recipes_samples(self, build, sft_parameters):
        parameters = sft_parameters(eval_fraction=0.25)
        for recipe, other in zip(
            build(FILTERED, WRITTEN, parameters),
            build(FILTERED, WRITTEN, parameters, prompt_format="training_prompt"),
            strict=True,
        ):
            assert recipe.to_list() == other.to_list()

    def test_chat_template_is_the_models(self, build, sft_parameters):
        parameters = sft_parameters(eval_fraction=0.25)
        train_dataset, evaluation = build(
            FILTERED, WRITTEN, parameters, prompt_format="chat_template"
        )
        assert train_dataset[-1] == {
            "prompt": "<start_of_turn>user\n質問2<end_of_turn>\n<start_of_turn>model\n",
            "completion": "回答2<end_of_turn>\n",
            "source": "qa_pairs",
        }
        assert all(text.endswith("<end_of_turn>\n") for text in completions(evaluation))

    def test_history_makes_the_sample_a_conversation(
        self, build, prompts, sft_parameters, tmp_path
    ):
        turns = [
            {"role": "user", "content": "前の質問"},
            {"role": "assistant", "content": "前の応答"},
        ]
        rows = [{**row, "history": turns if at else None} for at, row in enumerate(FILTERED)]
        saved = JSONLinesDataset(filepath=tmp_path / "filtered_pairs.jsonl")
        saved.save(Dataset.from_list(rows))
        train, evaluation = build(saved.load(), WRITTEN, sft_parameters(eval_fraction=0.25))
        before = training_prompt(prompts, "前の質問")
        for sample in (*train, *evaluation):
            if sample["source"] == "filtered_pairs" and sample["completion"] != "応答0":
                assert sample["prompt"].startswith(f"{before}前の応答<eos>")
                ((start, end),) = sample["earlier_answers"]
                assert sample["prompt"][start:end] == "前の応答<eos>"
            else:
                assert not sample["earlier_answers"]
        # without a history nothing changes
        plain = build(FILTERED, WRITTEN, sft_parameters())[0]
        empty = FILTERED.add_column("history", [[]] * 20)
        assert build(empty, WRITTEN, sft_parameters())[0].to_list() == plain.to_list()

    @pytest.mark.parametrize(
        ("history", "message"),
        [
            ("前の話", r"record 2: 'history' is '前の話', not a list of turns"),
            ([["質問", "応答"]], "not a list of turns with the texts 'role' and 'content'"),
            ([{"role": "user", "content": None}], "not a list of turns"),
            ([{"role": "user", "content": "一"}], "the roles of 'history' are user; they must"),
            (
                [{"role": role, "content": "一"} for role in ("assistant", "user")],
                "the roles of 'history' are assistant, user",
            ),
        ],
    )
    def test_history_that_cannot_be_used(self, build, sft_parameters, history, message):
        rows = [{**row, "history": history if at == 1 else None} for at, row in enumerate(FILTERED)]
        with pytest.raises(InputError, match=message):
            build(Dataset.from_list(rows), WRITTEN, sft_parameters())

    def test_model_without_chat_template_is_refused(self, build, sft_parameters, tiny_gemma2):
        with pytest.raises(InputError, match=r"'chat_template', but .* is missing"):
            build(FILTERED, WRITTEN, sft_parameters(), tiny_gemma2, "chat_template")


class TestTrainingArguments:
    @pytest.fixture
    def settings(self, base, monkeypatch):
        """What is passed to TRL, which refuses bfloat16 on a CPU."""
        monkeypatch.setattr(training, "SFTConfig", dict)
        return training.training_arguments(base)

    def test_set_by_the_project(self, settings):
        expected = {
            "output_dir": "data/06_models/base/checkpoints",
            "report_to": ["mlflow"],
            "use_cpu": False,
            "dataloader_pin_memory": True,
            "eval_strategy": "no",
            "max_length": 2048,
            "packing": False,
            # unsloth's own is set when the adapter is made
            "gradient_checkpointing": False,
        }
        assert {name: settings[name] for name in expected} == expected

    def test_have_the_names_of_the_parameters(self, base, settings):
        """``tests/test_recipe.py`` compares the parameters with the recipe."""
        same = base.training.model_dump(exclude=training.OWN_PARAMETERS)
        assert {name: settings[name] for name in same} == same
        assert {"per_device_train_batch_size", "optim", "seed", "neftune_noise_alpha"} <= set(same)

    def test_tuned_differs_only_in_arrangement(self, settings, read_parameters):
        tuned = training.training_arguments(SftParameters(**read_parameters("tuned")["sft"]))
        changed = {name: tuned[name] for name in tuned if tuned[name] != settings.get(name)}
        assert changed == {
            "output_dir": "data/06_models/tuned/checkpoints",
            # a batch of the trainer is a whole step: 4 x 8 samples
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "gradient_accumulation_steps": 1,
            # PackedNeftune does it, by samples
            "neftune_noise_alpha": None,
            "eval_strategy": "steps",
            "eval_steps": 100,
        }
        # the rows are made here
        assert tuned["packing"] is False
        assert tuned.keys() == settings.keys()

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            # an empty list in TRL's argument would mean every reporter that is installed
            ({}, {"report_to": [], "load_best_model_at_end": False}),
            ({**EVALUATING, "eval_fraction": 0.1}, {"eval_strategy": "steps"}),
            ({**EVALUATING, "eval_fraction": 0.0}, {"eval_strategy": "no"}),
            (
                EARLY,
                {
                    "load_best_model_at_end": True,
                    "metric_for_best_model": "eval_loss",
                    "greater_is_better": False,
                },
            ),
            # with peft; unsloth has its own
            ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
        ],
    )
    def test_follow_the_parameters(self, sft_parameters, changes, expected):
        arguments = training.training_arguments(sft_parameters(**changes))
        assert {name: getattr(arguments, name) for name in expected} == expected

    def test_checkpoints_go_where_the_node_says(self, sft_parameters):
        parameters = sft_parameters()
        assert training.training_arguments(parameters, "here").output_dir == "here"
        assert training.training_arguments(parameters).output_dir == parameters.checkpoint_dir

    def test_are_known_to_trl(self, base, monkeypatch):
        config = training.SFTConfig
        monkeypatch.setattr(training, "SFTConfig", dict)
        settings = training.training_arguments(base)
        assert set(settings) <= {field.name for field in dataclasses.fields(config)}
        accepted = config(**{**settings, "use_cpu": True})
        assert accepted.optim == "adamw_8bit"
        assert accepted.lr_scheduler_type == "linear"


class TestBackends:
    def test_unsloth_gets_the_recipe_and_the_directory(self, base, tiny_nf4, monkeypatch):
        calls = []
        loaded = tiny_nf4.load_model(device_map="cpu")

        class FastLanguageModel:
            @staticmethod
            def from_pretrained(**kwargs):
                calls.append(kwargs)
                return loaded, "tokenizer"

            @staticmethod
            def get_peft_model(model, **kwargs):
                calls.append({"model": model, **kwargs})
                return "adapted"

        fake = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
        monkeypatch.setitem(sys.modules, "unsloth", fake)
        assert adapt_with_unsloth(tiny_nf4, base) == ("adapted", "tokenizer")
        loading, adapting = calls
        assert Path(loading["model_name"]).is_absolute()
        assert loading == {
            "model_name": str(tiny_nf4.path),
            "max_seq_length": 2048,
            "dtype": None,
            "load_in_4bit": True,
            "local_files_only": True,
        }
        assert adapting == {
            "model": loaded,
            "r": 64,
            "lora_alpha": 64,
            "lora_dropout": 0,
            "bias": "none",
            "target_modules": list(base.lora.target_modules),
            "use_rslora": False,
            "loftq_config": None,
            "use_gradient_checkpointing": "unsloth",
            "random_state": 3407,
            "max_seq_length": 2048,
        }

    def test_peft_adapts_every_linear_layer_by_the_parameters(self, sft_parameters, tiny_nf4):
        parameters = sft_parameters(lora={"lora_r": 2, "lora_alpha": 6, "lora_dropout": 0.25})
        model, tokenizer = adapt_with_peft(tiny_nf4, parameters)
        config = model.peft_config["default"]
        assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 6, 0.25)
        assert (config.bias, config.task_type) == ("none", "CAUSAL_LM")
        adapted = {name for name, _ in model.named_modules() if name.endswith("lora_A")}
        assert len(adapted) == 2 * 7  # layers, projections
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable
        assert all("lora_" in name for name in trainable)
        assert tokenizer.eos_token == "<eos>"

    def test_peft_begins_the_same_for_the_same_seed(self, sft_parameters, tiny_nf4):
        def first_weights(seed):
            model, _ = adapt_with_peft(tiny_nf4, sft_parameters(lora={"seed": seed}))
            return next(p for name, p in model.named_parameters() if "lora_A" in name)

        assert first_weights(3407).equal(first_weights(3407))
        assert not first_weights(3407).equal(first_weights(1))


class TestTrain:
    @pytest.fixture
    def datasets(self, prompts, tiny_nf4, sft_parameters):
        return build_datasets(
            FILTERED, WRITTEN, tiny_nf4, prompts, sft_parameters(eval_fraction=0.2)
        )

    def test_adapter_metrics_and_history(self, tiny_nf4, sft_parameters, datasets):
        parameters = sft_parameters(max_steps=6, learning_rate=0.05)
        artifact, metrics, history = train(tiny_nf4, *datasets, parameters)
        assert isinstance(artifact, ModelArtifact)
        changed = [p for name, p in artifact.model.named_parameters() if "lora_B" in name]
        assert all(p.abs().sum() > 0 for p in changed)
        summary = metrics["summary"]
        assert summary["steps"] == 6
        assert summary["train_samples"] == len(datasets[0])
        assert summary["eval_samples"] == len(datasets[1]) == 4
        assert summary["eval_loss_after"] < summary["eval_loss_before"]
        assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
        evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        assert [round(loss, 4) for loss in evaluated] == [
            summary["eval_loss_before"],
            summary["eval_loss_after"],
        ]
        assert artifact.provenance["base"] == {
            "model_id": "tiny-random-gemma2",
            "revision": None,
            "weights_sha256": tiny_nf4.provenance["weights_sha256"],
            "source_files": tiny_nf4.provenance["source"]["files"],
        }

    def test_without_held_out_pairs_there_is_no_evaluation(
        self, tiny_nf4, sft_parameters, datasets
    ):
        nothing = datasets[1].select([])
        _, metrics, history = train(tiny_nf4, datasets[0], nothing, sft_parameters(max_steps=1))
        assert metrics["summary"]["eval_samples"] == 0
        assert "eval_loss_before" not in metrics["summary"]
        assert not any("eval_loss" in entry for entry in history)

    def test_only_too_long_questions_are_refused(self, tiny_nf4, sft_parameters, datasets):
        parameters = sft_parameters(max_seq_length=8, completion_only_loss=True)
        with pytest.raises(InputError, match=r"max_seq_length=8.*raise sft\.max_seq_length"):
            train(tiny_nf4, *datasets, parameters)


def test_loss_plot():
    figure = plot_loss(
        [
            {"step": 0, "eval_loss": 3.0},
            {"step": 1, "loss": 2.5, "learning_rate": 1e-4},
            {"step": 2, "loss": 2.0},
            {"step": 2, "eval_loss": 1.5},
            {"step": 2, "train_runtime": 9.0},
        ]
    )
    curves = {curve.name: (list(curve.x), list(curve.y)) for curve in figure.data}
    assert curves == {
        "training loss": ([1, 2], [2.5, 2.0]),
        "evaluation loss (held out)": ([0, 2], [3.0, 1.5]),
    }
    assert [curve.name for curve in plot_loss([{"step": 1, "loss": 2.5}]).data] == ["training loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"early_stopping_patience": None},
    ],
    ids=str,
)
def test_only_early_stopping_by_steps_restricts_save_steps(sft_parameters, changes):
    changes = {**EARLY, "save_steps": 5, **changes}
    assert sft_parameters(**changes).training.save_steps == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "unsloth"}, "'unsloth' needs device 'cuda'; on a CPU use backend 'peft'"),
        ({"eval_fraction": 1.0}, "less than 1"),
        ({"lora": {"lora_r": 0}}, "greater than 0"),
        ({"save_strategy": "sometimes"}, "'no', 'steps' or 'epoch'"),
        ({"lora": {"r": 8}}, "Extra inputs are not permitted"),
        ({"over_long": "split"}, "'cut' or 'drop'"),
        ({"tokens_per_batch": 0}, "greater than 0"),
        ({"divergence_nats": 0.0}, "greater than 0"),
        ({"early_stopping_patience": 0}, "greater than 0"),
        ({"packing": True}, r"training\.packing needs training\.tokens_per_batch, such as 8192"),
        (
            {"tokens_per_batch": 255},
            r"tokens_per_batch = 255 is less than max_seq_length = 256: the longest sample must",
        ),
        ({**EARLY, "eval_fraction": 0.0}, "patience needs eval_fraction above 0"),
        ({**EARLY, "eval_strategy": "no"}, "eval_strategy and save_strategy to be"),
        ({**EARLY, "save_strategy": "no"}, "the same, steps or epoch"),
        ({**EARLY, "save_strategy": "epoch"}, "the same, steps or epoch"),
        (
            {**EARLY, "save_steps": 5},
            r"needs save_steps \(now 5\) to be a multiple of eval_steps \(now 2\)",
        ),
    ],
)
def test_unusable_parameters_are_refused(sft_parameters, changes, message):
    with pytest.raises(ValueError, match=message):
        sft_parameters(**changes)
