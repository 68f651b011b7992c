"""What makes an output of the project stale, and what a run then does."""

import json
import shutil
from functools import partial

import pytest
from click.testing import CliRunner

from ja_instruct.pipeline_registry import register_pipelines
from kedro_freshness.declarations import PREFIX, without_effect
from kedro_freshness.recipes import flatten
from kedro_freshness.status import status

# The nodes whose outputs a parameter can change. A new parameter must be added here.
NODES_BY_PARAMETER = """
data_filtering.multi_turn: extract_pairs
data_filtering.system_turns: extract_pairs
data_filtering.assistant_first: extract_pairs
data_filtering.rare_char_count_max: find_rare_characters
data_filtering.survivor_char_count_min: judge_survivors
data_filtering.language: judge_pairs report_filtering
data_filtering.language_percent_min: judge_pairs report_filtering
data_filtering.bad_records_max: none
data_filtering.extra_rules: judge_pairs judge_survivors
data_filtering.response_tokens_min: judge_pairs
data_filtering.pair_tokens_max: judge_pairs
data_filtering.repeated_sentence_percent_max: judge_pairs
data_filtering.repeated_ngram_percent_max: judge_pairs
data_filtering.repeated_ngram_letters_min: judge_pairs
data_filtering.han_chars_without_kana_max: judge_pairs
data_filtering.foreign_han_chars_without_kana_max: judge_pairs
data_filtering.contamination_ngram_chars: judge_pairs
data_filtering.contamination_share_min: judge_pairs
data_filtering.contamination_stock_texts_max: judge_pairs
data_filtering.near_duplicate_jaccard_min: judge_pairs judge_survivors
export.gguf_outtype: export_gguf
inference.backend: answer_tasks answer_with_base_model
inference.engine: answer_tasks answer_with_base_model
inference.batching.max_num_seqs: none
inference.batching.weights: answer_tasks answer_with_base_model
inference.batching.kv_cache_dtype: answer_tasks answer_with_base_model
inference.batching.memory_gb: none
inference.batching.prefill_chunk_size: none
inference.batching.cuda_graphs: none
inference.device: none
inference.gpu.devices: none
inference.gpu.memory_gb: none
inference.gpu.disk_gb: none
inference.top_k: build_prompts
inference.max_query_tokens: build_prompts
inference.exclude_same_task: build_prompts
inference.example_diversity: build_prompts
inference.max_seq_length: build_prompts answer_tasks answer_with_base_model
inference.max_new_tokens: build_prompts answer_tasks answer_with_base_model
inference.fit_prompt: build_prompts
inference.repetition_penalty: answer_tasks answer_with_base_model
inference.penalty_on: answer_tasks answer_with_base_model
inference.penalty_spares_end: answer_tasks answer_with_base_model
inference.bad_words: answer_tasks answer_with_base_model
inference.bad_words_in: answer_tasks answer_with_base_model
inference.compare_tasks: answer_with_base_model
inference.fail_on_failed_tasks: none
inference.cut_off_is_failure: answer_tasks
prompts.format: build_datasets build_prompts answer_tasks answer_with_base_model merge_adapter
prompts.train_prompt: build_datasets build_prompts
prompts.few_shot_header: build_datasets build_prompts
prompts.few_shot_example: build_datasets build_prompts
prompts.task_prompt: build_datasets build_prompts
publishing.commit_message: none
quantization.device: none
quantization.gpu.devices: none
quantization.gpu.memory_gb: none
quantization.gpu.disk_gb: none
quantization.quant_type: quantize
quantization.double_quantization: quantize
quantization.load_dtype: quantize
quantization.compute_dtype: quantize
quantization.perplexity_max_tokens: measure_quantization
quantization.chat_template: quantize
rag_index.retriever: encode_pool
rag_index.batch_size: none
rag_index.max_document_tokens: encode_pool
sft.backend: train
sft.device: none
sft.gpu.devices: train
sft.gpu.memory_gb: none
sft.gpu.disk_gb: none
sft.max_seq_length: train
sft.over_long: train
sft.completion_only_loss: train
sft.eval_fraction: build_datasets train
sft.checkpoint_dir: none
sft.resume: none
sft.model_card.license: train
sft.model_card.license_terms: train
sft.model_card.filtered_pairs.name: train
sft.model_card.filtered_pairs.license: train
sft.model_card.qa_pairs.name: train
sft.model_card.qa_pairs.license: train
sft.lora.lora_r: train
sft.lora.lora_alpha: train
sft.lora.lora_dropout: train
sft.lora.bias: train
sft.lora.target_modules: train
sft.lora.use_rslora: train
sft.lora.seed: train
sft.training.per_device_train_batch_size: train
sft.training.per_device_eval_batch_size: none
sft.training.gradient_accumulation_steps: train
sft.training.num_train_epochs: train
sft.training.max_steps: train
sft.training.learning_rate: train
sft.training.lr_scheduler_type: train
sft.training.lr_scheduler_kwargs: train
sft.training.warmup_steps: train
sft.training.optim: train
sft.training.weight_decay: train
sft.training.bf16: train
sft.training.neftune_noise_alpha: train
sft.training.auto_find_batch_size: none
sft.training.gradient_checkpointing: none
sft.training.tokens_per_batch: train
sft.training.packing: train
sft.training.logging_steps: train
sft.training.eval_strategy: train
sft.training.eval_steps: train
sft.training.early_stopping_patience: train
sft.training.early_stopping_threshold: train
sft.training.divergence_nats: train
sft.training.save_strategy: train
sft.training.save_steps: train
sft.training.save_total_limit: none
sft.training.report_to: none
sft.training.seed: build_datasets train
"""


def nodes():
    return {node.name: node for one in register_pipelines().values() for node in one.nodes}


def test_what_counts_and_what_does_not(read_parameters):
    parameters = read_parameters("demo")
    del parameters["freshness"]
    found = {}
    for section in sorted(parameters):
        readers = [node for node in nodes().values() if PREFIX + section in node.inputs]
        for key, _ in flatten(parameters[section], section):
            found[key] = {
                node.name for node in readers if not without_effect(node.func).covers(PREFIX + key)
            }
    lines = [line.split(": ") for line in NODES_BY_PARAMETER.split("\n") if line]
    assert found == {key: set(names.split()) - {"none"} for key, names in lines}


@pytest.mark.parametrize("name", sorted(nodes()))
def test_declared_names_are_inputs_and_parameters_of_the_node(name, read_parameters):
    node = nodes()[name]
    parameters = read_parameters("demo")
    known = {*node.inputs}
    for one in node.inputs:
        if one.startswith(PREFIX):
            section = one.removeprefix(PREFIX)
            keys = [key.split(".") for key, _ in flatten(parameters[section], section)]
            known |= {
                PREFIX + ".".join(key[:end]) for key in keys for end in range(1, len(key) + 1)
            }
    declared = without_effect(node.func)
    assert {*declared.names, *declared.but} <= known


RATE = "sft.training.learning_rate=0.05"
CHEAP = "inference.max_new_tokens=1"


@pytest.fixture(scope="module")
def copied(finished_project, tmp_path_factory):
    copy = tmp_path_factory.mktemp("stale") / "project"
    return shutil.copytree(finished_project, copy, symlinks=True)


@pytest.fixture
def run(copied, invoke_kedro, caplog):
    """Return a function that runs the project in the copy and returns what is logged."""

    def call(*args, env="test", fails=False):
        caplog.clear()
        result = invoke_kedro(f"--env={env}", *args, cwd=copied)
        assert (result.exit_code != 0) == fails, result.output
        logged = [one.getMessage() for one in caplog.records if "freshness" in one.name]
        return "\n".join([*logged, *([result.output] if fails else [])])

    return call


@pytest.fixture
def states(copied, monkeypatch):
    """Return a function from arguments of ``status`` to state and details by output."""

    def call(*args, env="test"):
        monkeypatch.chdir(copied)
        result = CliRunner().invoke(status, [f"--env={env}", *args], catch_exceptions=False)
        assert result.exit_code == 0
        lines = [line.split(maxsplit=2) for line in result.output.split("\n\n")[0].splitlines()]
        return {name: (state, *details) for state, name, *details in lines}

    return call


def stale(found):
    return {name for name, (state, *_) in found.items() if state == "stale"}


class TestRuns:
    """In this order: each continues with the outputs of the one before."""

    def test_everything_is_fresh_after_a_run(self, states):
        found = states()
        assert {state for state, *_ in found.values()} == {"fresh", "missing"}
        assert found["adapter"] == ("fresh", "data/06_models/test/adapter")
        missing = {name for name, (state, *_) in found.items() if state == "missing"}
        assert missing == {
            *("merged_model", "export_report", "gguf_model"),
            *("published_adapter", "published_quantized_model", "published_merged_model"),
        }

    def test_parameters_without_effect_make_nothing_stale(self, states):
        found = states(
            "--params=inference.batching.max_num_seqs=2,sft.training.save_total_limit=3,"
            "rag_index.batch_size=1,data_filtering.bad_records_max=1,sft.resume=false"
        )
        assert not stale(found)

    def test_a_changed_parameter_makes_the_adapter_and_what_depends_on_it_again(
        self, run, states, copied
    ):
        expected = {
            *("adapter", "train_metrics", "train_history", "loss_plot"),
            *("answers", "inference_report", "run_report"),
        }
        assert stale(states(f"--params={RATE}")) == expected
        adapter = copied / "data/06_models/test/adapter/adapter_model.safetensors"
        before = adapter.read_bytes()
        logged = run("--only-missing-outputs", f"--params={RATE}")
        assert (
            "Made again: adapter, train_metrics, train_history: "
            "sft.training.learning_rate was 0.0002, is 0.05"
        ) in logged
        assert adapter.read_bytes() != before
        assert not stale(states(f"--params={RATE}"))
        # the answers are those of the new adapter
        assert states()["answers"] == ("stale", "adapter is stale")

    def test_a_new_adapter_makes_the_answers_stale(self, run, states):
        run("--pipeline=sft")
        assert states()["answers"] == ("stale", "adapter has changed")
        logged = run("--only-missing-outputs")
        assert "Made again: answers, inference_report: adapter has changed" in logged
        assert not stale(states())

    def test_a_run_says_which_stale_input_it_reads(self, run, states):
        logged = run("--pipeline=reporting", f"--params={CHEAP}")
        assert "answers, an input of build_run_report, is stale" in logged
        assert "inference.max_new_tokens was 8, is 1" in logged
        assert not run("--pipeline=reporting")

    def test_another_environment_reads_what_it_shares_and_does_not_rewrite_it(
        self, run, states, copied, add_environment
    ):
        """As trials do that share a model."""
        shared = {
            name: {
                "type": f"ja_instruct.datasets.{kind}",
                "filepath": f"data/06_models/test/{name}",
            }
            for name, kind in (
                ("quantized_model", "QuantizedModelDataset"),
                ("adapter", "AdapterDataset"),
            )
        }
        add_environment(
            "trial", root=copied, catalog=shared, parameters={"inference": {"max_new_tokens": 1}}
        )
        weights = [
            path
            for name in shared
            for path in (copied / "data/06_models/test" / name).glob("*.safetensors")
        ]
        before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in weights]
        for only_missing in ([], ["--only-missing-outputs"]):
            shown = run(*only_missing, env="trial", fails=True)
            assert "the run would rewrite what another environment made" in shown
            assert "'adapter' (data/06_models/test/adapter), by node 'train'" in shown
            assert "environment 'test' made it at 20" in shown
        run("--only-missing-outputs", "--pipelines=quantization,rag_index,inference", env="trial")
        assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in weights] == before
        answers = copied / "data/07_model_output/trial/output.jsonl"
        assert len(answers.read_text("utf-8").splitlines()) == 20
        _, details = states(env="trial")["adapter"]
        assert details.endswith("(made by environment 'test')")
        run("--pipeline=quantization", "--params=freshness.rewrite_others=true", env="trial")
        assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in weights] != before

    def test_an_output_that_was_copied_in_is_taken_as_it_is(self, run, states, copied):
        answers = copied / "data/07_model_output/test/output.jsonl"
        answers.write_text(json.dumps({"task_id": 0, "input": "", "output": ""}) + "\n", "utf-8")
        assert states()["answers"][0] == "unknown"
        # the environment 'trial' has quantized the model again, with the same result
        logged = run("--only-missing-outputs", "--params=freshness.rewrite_others=true")
        assert "Of unknown origin, taken as they are: answers." in logged
        assert len(answers.read_text("utf-8").splitlines()) == 1


def test_an_unknown_key_of_the_section_is_refused(invoke_kedro):
    result = invoke_kedro("--env=test", "--params=freshness.count_cod=true")
    assert result.exit_code == 1
    assert (
        "'freshness.count_cod' is unknown; the keys are count_code, rewrite_others" in result.output
    )


def test_status_of_an_unknown_environment(finished_project, monkeypatch):
    monkeypatch.chdir(finished_project)
    result = CliRunner().invoke(status, ["--env=demi"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: environment 'demi': ")
    assert "conf/demi" in result.output


def test_status_writes_nothing(clean_project, list_files, monkeypatch):
    before = list_files(clean_project)
    monkeypatch.chdir(clean_project)
    result = CliRunner().invoke(status, ["--env=test"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "28 missing" in result.output
    assert list_files(clean_project) == before


class TestModule:
    """``python -m ja_instruct``."""

    @pytest.fixture
    def call(self, project, run_python):
        return partial(run_python, "-m", "ja_instruct", cwd=project)

    def test_status(self, call):
        done = call("status", "--env=test", "--pipeline=rag_index")
        assert done.returncode == 0, done.stderr
        assert {line.split()[1] for line in done.stdout.splitlines()[:2]} == {
            "retrieval_index",
            "rag_index_report",
        }

    def test_run(self, call, project):
        done = call("--env", "test", "--pipeline", "data_filtering")
        assert done.returncode == 0, done.stderr
        assert (project / "data/03_primary/test/filtered_pairs.jsonl").is_file()
