"""``kedro run --env=test``: all pipelines with the demo's data and tiny random models."""

import json
import shutil

import mlflow
import pytest
from mlflow import MlflowClient
from records import read_lines

from ja_instruct.pipeline_registry import register_pipelines

STAGES = ("data_filtering", "quantization", "sft", "rag_index", "inference", "reporting")
OUTPUTS = (
    "03_primary/test/filtered_pairs.jsonl",
    "03_primary/test/rejected_pairs.jsonl",
    "03_primary/test/quarantined_records.jsonl",
    "04_feature/test/retrieval_index",
    "05_model_input/test/train_dataset.jsonl",
    "05_model_input/test/eval_dataset.jsonl",
    "06_models/test/quantized_model",
    "06_models/test/adapter",
    "07_model_output/test/prompts.jsonl",
    "07_model_output/test/output.jsonl",
    "07_model_output/test/base_answers.jsonl",
    "08_reporting/test/filter_report.json",
    "08_reporting/test/filter_report.html",
    "08_reporting/test/rejection_plot.json",
    "08_reporting/test/length_plot.json",
    "08_reporting/test/quantization_report.json",
    "08_reporting/test/train_metrics.json",
    "08_reporting/test/train_history.json",
    "08_reporting/test/loss_plot.json",
    "08_reporting/test/rag_index_report.json",
    "08_reporting/test/inference_report.json",
    "08_reporting/test/report.html",
)


def read_json(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def data(finished_project):
    return finished_project / "data"


@pytest.fixture(scope="module")
def shown(finished_run):
    return finished_run.process.stdout + finished_run.process.stderr


@pytest.fixture(scope="module")
def copied(finished_project, tmp_path_factory):
    """A copy of the finished project, to run parts of it again."""
    copy = tmp_path_factory.mktemp("again") / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    return copy


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_exists(data, output):
    assert (data / output).exists()


def test_outputs_are_those_of_the_catalog(read_configuration):
    catalog = read_configuration("test")["catalog"]
    produced = register_pipelines()["__default__"].all_outputs() & set(catalog)
    assert {catalog[name]["filepath"] for name in produced} == {f"data/{path}" for path in OUTPUTS}


def test_every_task_is_answered_once_and_in_order(data):
    tasks = read_lines(data / "01_raw/demo/tasks.jsonl")
    answers = read_lines(data / "07_model_output/test/output.jsonl")
    assert [list(answer) for answer in answers] == [["task_id", "input", "output"]] * len(tasks)
    assert [(answer["task_id"], answer["input"]) for answer in answers] == [
        (task["task_id"], task["input"]) for task in tasks
    ]
    assert any(answer["output"] for answer in answers)
    assert not [word for word in ("#", "質問", "---") for a in answers if word in a["output"]]


def test_the_best_example_comes_last(data):
    for prompt in read_lines(data / "07_model_output/test/prompts.jsonl"):
        scores = [example["score"] for example in prompt["shots"]]
        assert len(scores) == 3
        assert scores == sorted(scores)
        places = [prompt["prompt"].index(example["output"]) for example in prompt["shots"]]
        assert places == sorted(places)
        assert prompt["prompt"].endswith(f"### 質問:\n{prompt['input']}\n\n### 回答:\n")


def test_no_pair_is_lost_or_both_held_out_and_trained_on(data):
    kept = read_lines(data / "03_primary/test/filtered_pairs.jsonl")
    rejected = read_lines(data / "03_primary/test/rejected_pairs.jsonl")
    conversations = read_lines(data / "01_raw/demo/conversations.jsonl")
    assert {r["id"] for r in kept + rejected} == {c["id"] for c in conversations}
    assert len(kept) + len(rejected) == len(conversations)

    train = read_lines(data / "05_model_input/test/train_dataset.jsonl")
    held_out = read_lines(data / "05_model_input/test/eval_dataset.jsonl")
    written = read_lines(data / "01_raw/demo/qa_pairs.jsonl")
    assert len(held_out) == len(kept) // 10
    assert len(train) + len(held_out) == len(kept) + len(written)
    assert [s["completion"] for s in train[-len(written) :]] == [pair["output"] for pair in written]
    prompts = {sample["prompt"] for sample in train}
    assert not [sample for sample in held_out if sample["prompt"] in prompts]


def test_reports(data):
    reporting = data / "08_reporting/test"
    training = read_json(reporting / "train_metrics.json")["summary"]
    assert training["steps"] == 4
    assert training["train_loss"] > 0
    history = read_json(reporting / "train_history.json")
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    page = (reporting / "report.html").read_text("utf-8")
    assert f"<strong>{training['eval_loss_before']:.3f}</strong>" in page
    for answer in read_lines(data / "07_model_output/test/base_answers.jsonl"):
        assert answer["input"].split("\n")[0] in page


def test_adapter_records_the_model_it_was_trained_on(data):
    models = data / "06_models/test"
    quantized = read_json(models / "quantized_model/ja_instruct.json")
    adapter = read_json(models / "adapter/ja_instruct.json")
    assert quantized["source"]["model_id"] == "tiny-random-gemma2"
    assert adapter["base"]["weights_sha256"] == quantized["weights_sha256"]


def test_a_log_line_per_stage_and_the_paths_of_the_results(shown, data):
    for stage in STAGES:
        assert shown.count(f"{stage} done in ") == 1
    for path in ("07_model_output/test/output.jsonl", "08_reporting/test/report.html"):
        assert f"data/{path}" in shown.replace(f"{data}/", "data/").split()
    assert "Traceback" not in shown


def test_nothing_is_written_outside_data(finished_run):
    def outside(files):
        # kedro-viz keeps its statistics in .viz, which git ignores
        return {
            path: stat for path, stat in files.items() if path.split("/")[0] not in ("data", ".viz")
        }

    assert outside(finished_run.before)
    assert outside(finished_run.after) == outside(finished_run.before)


def test_inputs_are_not_changed(finished_run):
    inputs = [path for path in finished_run.before if path.startswith("data/")]
    assert {path.split("/")[1] for path in inputs} == {"01_raw", "06_models"}
    for path in inputs:
        assert finished_run.after[path] == finished_run.before[path], path


class TestMlflow:
    @pytest.fixture(scope="class")
    def client(self, data):
        return MlflowClient(f"sqlite:///{data}/mlflow/mlflow.db")

    @pytest.fixture(scope="class")
    def only_run(self, client):
        experiment = client.get_experiment_by_name("ja-instruct")
        (only,) = client.search_runs([experiment.experiment_id])
        return only

    def test_run_is_finished_and_logged(self, only_run, shown):
        assert only_run.info.status == "FINISHED"
        assert only_run.info.run_id in shown

    def test_parameters_of_every_stage(self, only_run):
        logged = only_run.data.params
        expected = {
            "data_filtering.rare_char_count_max": "1",
            "data_filtering.language": "ja",
            "quantization.quant_type": "nf4",
            "quantization.double_quantization": "True",
            "sft.lora.lora_r": "4",
            "sft.training.max_steps": "4",
            "sft.training.learning_rate": "0.0002",
            "rag_index.batch_size": "32",
            "inference.top_k": "3",
            "inference.max_new_tokens": "8",
        }
        assert {name: logged.get(name) for name in expected} == expected
        assert logged["prompts.task_prompt"].startswith("あなたは日本語が堪能な")

    def test_no_other_parameters(self, only_run, read_parameters):
        # those of pipelines that run on request, and those of no node
        sections = set(read_parameters("test")) - {"export", "publishing", "freshness"}
        assert {name.split(".")[0] for name in only_run.data.params} == sections

    def test_figures_of_every_stage(self, only_run, data):
        logged = only_run.data.metrics
        reporting = data / "08_reporting/test"
        for stage, report in (
            ("data_filtering", "filter_report"),
            ("quantization", "quantization_report"),
            ("sft", "train_metrics"),
            ("rag_index", "rag_index_report"),
            ("inference", "inference_report"),
        ):
            for name, value in read_json(reporting / f"{report}.json")["summary"].items():
                assert logged[f"{stage}.{name}"] == pytest.approx(value), (stage, name)
        assert logged["data_filtering.kept"] > 0
        assert logged["sft.eval_loss_after"] > 0
        assert {f"{stage}.stage_seconds" for stage in STAGES} <= set(logged)

    def test_seconds_of_every_node_that_has_outputs(self, only_run):
        logged = only_run.data.metrics
        nodes = register_pipelines()["__default__"].nodes
        for stage in STAGES:
            names = [node.name for node in nodes if stage in node.tags and node.outputs]
            seconds = [logged[f"{stage}.{name}.seconds"] for name in names]
            assert sum(seconds) == pytest.approx(logged[f"{stage}.stage_seconds"], abs=0.1), stage

    def test_curve_of_the_trainer(self, client, only_run, data):
        curve = client.get_metric_history(only_run.info.run_id, "loss")
        history = read_json(data / "08_reporting/test/train_history.json")
        assert [(point.step, point.value) for point in curve] == [
            (entry["step"], pytest.approx(entry["loss"])) for entry in history if "loss" in entry
        ]

    def test_report_is_an_artifact(self, client, only_run, data):
        assert [item.path for item in client.list_artifacts(only_run.info.run_id)] == [
            "report.html"
        ]
        assert list(data.glob("mlflow/artifacts/*/artifacts/report.html"))


def test_only_missing_outputs_runs_nothing_when_there_are_none(copied, run_kedro, list_files):
    before = list_files(copied, "data/mlflow", ".viz")
    done = run_kedro("--env=test", "--only-missing-outputs", cwd=copied)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert " done in " not in shown
    assert f"skipped: {', '.join(STAGES)}" in shown
    assert list_files(copied, "data/mlflow", ".viz") == before


CHEAP = "--params=sft.training.max_steps=1,inference.max_new_tokens=1,inference.compare_tasks=1"


class TestAgain:
    """Parts of the run again in the copy, with parameters that make them cheap."""

    @pytest.fixture
    def again(self, copied, invoke_kedro):
        def call(*args):
            result = invoke_kedro(*args, cwd=copied)
            assert result.exit_code == 0, result.output
            return result

        return call

    @pytest.mark.parametrize("stage", STAGES)
    def test_each_pipeline_alone(self, again, copied, list_files, stage):
        before = list_files(copied / "data")
        shown = again("--env=test", f"--pipeline={stage}", CHEAP).output
        assert f"{stage} done in " in shown
        assert not [other for other in STAGES if other != stage and f"{other} done" in shown]
        after = list_files(copied / "data")
        changed = {path for path in after if after[path] != before.get(path)}
        assert changed

    def test_runs_in_one_process_are_separate_in_mlflow(self, again, copied):
        """As in a notebook: each is a run of its own, and none stays open."""
        client = MlflowClient(f"sqlite:///{copied}/data/mlflow/mlflow.db")

        def runs():
            experiment = client.get_experiment_by_name("ja-instruct")
            return {run.info.run_id for run in client.search_runs([experiment.experiment_id])}

        before = runs()
        for number in (1, 2):
            again("--env=test", "--pipeline=data_filtering")
            assert mlflow.active_run() is None
            assert len(runs() - before) == number

    def test_only_missing_outputs_makes_the_missing_ones(self, again, copied):
        gone = copied / "data/07_model_output/test/output.jsonl"
        gone.unlink()
        prompts = copied / "data/07_model_output/test/prompts.jsonl"
        before = prompts.stat().st_mtime_ns
        shown = again("--env=test", "--only-missing-outputs", CHEAP).output
        assert gone.exists()
        assert prompts.stat().st_mtime_ns == before
        # the report depends on the answers
        done = [stage for stage in STAGES if f"{stage} done" in shown]
        assert done == ["inference", "reporting"]

    def test_params_take_effect(self, again, copied):
        again("--env=test", "--pipeline=sft", "--params=sft.training.max_steps=2,sft.lora.lora_r=2")
        metrics = read_json(copied / "data/08_reporting/test/train_metrics.json")
        assert metrics["summary"]["steps"] == 2
        adapter = read_json(copied / "data/06_models/test/adapter/adapter_config.json")
        assert adapter["r"] == 2

    def test_a_new_environment_takes_effect(self, again, copied, add_environment):
        """It holds the parameters that differ; the rest of their section stays."""
        environment = add_environment(
            "mine", root=copied, parameters={"data_filtering": {"language_percent_min": 100}}
        )
        again(environment, "--pipeline=data_filtering")
        mine = read_json(copied / "data/08_reporting/mine/filter_report.json")
        theirs = read_json(copied / "data/08_reporting/test/filter_report.json")
        assert mine["summary"]["kept"] < theirs["summary"]["kept"]
        assert mine["rejected_by_rule"]["language"] > theirs["rejected_by_rule"]["language"]
        for rule in ("banned_substring", "rare_character"):
            assert mine["rejected_by_rule"][rule] == theirs["rejected_by_rule"][rule]

    def test_nothing_held_out_and_nothing_compared(self, again, copied, add_environment):
        """As in the recipe: two outputs are empty, and a run continues where another stopped."""
        environment = add_environment(
            "bare",
            root=copied,
            globals={"run_name": "test"},
            parameters={
                "sft": {"eval_fraction": 0.0, "training": {"max_steps": 1}},
                "inference": {"compare_tasks": 0, "max_new_tokens": 1},
            },
        )
        rewrite = "--params=freshness.rewrite_others=true"
        again(environment, "--pipelines=sft,inference", rewrite)
        assert (copied / "data/05_model_input/test/eval_dataset.jsonl").read_bytes() == b""
        assert (copied / "data/07_model_output/test/base_answers.jsonl").read_bytes() == b""
        shutil.rmtree(copied / "data/06_models/test/adapter")
        (copied / "data/08_reporting/test/report.html").unlink()
        again(environment, "--only-missing-outputs", rewrite)
        assert (copied / "data/06_models/test/adapter/adapter_model.safetensors").is_file()
        page = (copied / "data/08_reporting/test/report.html").read_text("utf-8")
        assert "no pairs were held out" in page


def test_whole_conversations_reach_the_training_samples(finished_project, tmp_path, invoke_kedro):
    copy = tmp_path / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    path = copy / "data/01_raw/demo/conversations.jsonl"
    talks = read_lines(path)
    joined = [
        {
            "id": [one["id"], other["id"]],
            "meta": one["id"] if number % 2 else one,
            "conversations": one["conversations"] + other["conversations"],
        }
        for number, (one, other) in enumerate(zip(talks[::2], talks[1::2], strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, joined)), "utf-8")
    result = invoke_kedro(
        "--env=test",
        "--to-outputs=filtered_pairs,rejected_pairs,train_dataset",
        "--params=data_filtering.multi_turn=all,sft.eval_fraction=0",
        cwd=copy,
    )
    assert result.exit_code == 0, result.output
    pairs = read_lines(copy / "data/03_primary/test/filtered_pairs.jsonl")
    rejected = read_lines(copy / "data/03_primary/test/rejected_pairs.jsonl")
    assert len(pairs) + len(rejected) == len(joined)
    assert len(pairs) > 20
    samples = read_lines(copy / "data/05_model_input/test/train_dataset.jsonl")
    for pair, sample in zip(pairs, samples, strict=False):
        turns = [*(turn["content"] for turn in pair["history"]), pair["instruction"]]
        places = [sample["prompt"].index(text) for text in turns]
        assert places == sorted(places)
        assert len(pair["history"]) >= 2
        assert sample["completion"] == pair["response"]
        meta = json.loads(pair["meta"])
        assert pair["id"][0] == (meta if isinstance(meta, str) else meta["id"])
