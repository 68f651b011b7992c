"""Errors of unusable input name the problem, its place and the remedy."""

import contextlib
import re
import shutil
import sqlite3
from copy import deepcopy
from types import SimpleNamespace

import pytest
from fake_devices import FakeDevices
from kedro.framework.project import configure_project
from kedro.io import DataCatalog
from kedro.pipeline import node, pipeline

from ja_instruct.config import RENAMED_PARAMETERS
from ja_instruct.datasets import (
    ColbertCheckpointDataset,
    ConversationsDataset,
)
from ja_instruct.errors import InputError
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.preflight.run import check_run

PRE_TRAINED = {"type": "ja_instruct.datasets.HubModelDataset", "repo_id": "google/gemma-2-27b"}
CONVERSATIONS = {
    "type": "ja_instruct.datasets.HubDataset",
    "dataset_name": "llm-jp/magpie-sft-v1.0",
    "dataset_kwargs": {"split": "train"},
}


def jsonl(path):
    return {"type": "ja_instruct.datasets.JSONLinesDataset", "filepath": str(path)}


@pytest.fixture
def refused(invoke_kedro, project):
    """Return a function that runs Kedro, expects an error without side effects, and returns it."""

    def count_runs():
        database = project / "data/mlflow/mlflow.db"
        if not database.exists():
            return 0
        with contextlib.closing(sqlite3.connect(database)) as connection:
            (runs,) = connection.execute("select count(*) from runs").fetchone()
        return runs

    def outputs():
        files = project.rglob("data/**/*")
        return sorted(path for path in files if "mlflow" not in path.parts), count_runs()

    def run(*args):
        before = outputs()
        result = invoke_kedro(*args)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert " done in " not in result.output
        assert outputs() == before
        return " ".join(result.output.split())

    return run


class TestData:
    @pytest.mark.parametrize(
        ("name", "text", "messages"),
        [
            (
                "tasks",
                '{"task_id": 0, "input": "一"}\n{"task_id": 1, "input": "二"\n',
                [":2: not JSON (", "every line must hold one JSON object"],
            ),
            (
                "qa_pairs",
                '{"input": "一", "output": "二"}\n{"question": "三"}\n',
                [": record 2 lacks input, output; it has question"],
            ),
            (
                "tasks",
                None,
                [": no such file", "put the file there, or point the catalog entry 'tasks' at an"],
            ),
            ("tasks", "", [": holds no records"]),
            (
                "tasks",
                '{"task_id": 0, "input": "一"}\n{"task_id": "1", "input": "二"}\n',
                [
                    ":2: a value of another type: ",
                    "'task_id' is text where a whole number is expected; give every "
                    "record the expected type there",
                ],
            ),
        ],
        ids=["malformed line", "missing column", "missing file", "empty file", "two types"],
    )
    def test_records(self, refused, add_environment, tmp_path, name, text, messages):
        path = tmp_path / "records.jsonl"
        if text is not None:
            path.write_text(text, "utf-8")
        message = refused(add_environment("records", catalog={name: jsonl(path)}))
        assert f"'{name}': {path}{messages[0]}" in message
        for other in messages[1:]:
            assert other in message
        assert "few_shot_pool" not in message

    def test_the_pool_of_examples_is_named_if_it_has_an_entry(
        self, refused, add_environment, tmp_path
    ):
        pool = {"few_shot_pool": jsonl(tmp_path / "pool.jsonl")}
        message = refused(add_environment("pool", catalog=pool))
        assert f"'few_shot_pool': {tmp_path / 'pool.jsonl'}: no such file" in message
        assert "'qa_pairs': " not in message

    def test_mistaken_sources(self, refused, add_environment, tmp_path):
        sources = [{"file": "a.jsonl"}, {"files": str(tmp_path / "*.jsonl")}]
        entry = {"type": "ja_instruct.datasets.ConversationsDataset", "sources": sources}
        message = refused(add_environment("sources", catalog={"raw_conversations": entry}))
        assert "'raw_conversations': source 1: 'file' is unknown; did you mean 'files'?" in message

    def test_bad_records(self, tmp_path):
        path = tmp_path / "conversations.jsonl"
        path.write_text("{\n{\n", "utf-8")
        source = ConversationsDataset(sources=[{"files": str(path)}])

        def check(**parameters):
            catalog = DataCatalog({"raw_conversations": source})
            for name, value in parameters.items():
                catalog[f"params:data_filtering.{name}"] = value
            one = node(lambda conversations: conversations, "raw_conversations", "filtered")
            check_run(pipeline([one]), catalog, only_missing_outputs=False)

        check(bad_records_max=2)
        for parameters in ({"bad_records_max": 1}, {}):
            with pytest.raises(InputError) as caught:
                check(**parameters)
            allowed = parameters.get("bad_records_max", 0)
            message = (
                f"'raw_conversations': 2 bad record(s), {allowed} allowed: {path}:1: not JSON ("
            )
            assert message in str(caught.value)
            assert "Repair or remove them, or raise data_filtering.bad_rec" in str(caught.value)

    def test_only_bm25_runs_without_a_checkpoint(self, tmp_path):
        one = node(lambda checkpoint: checkpoint, "retriever_checkpoint", "index")
        missing = ColbertCheckpointDataset(filepath=tmp_path / "none")
        for retriever in ("bm25", "colbert", "hybrid"):
            catalog = DataCatalog({"retriever_checkpoint": missing})
            catalog["params:rag_index.retriever"] = retriever
            if retriever == "bm25":
                check_run(pipeline([one]), catalog, only_missing_outputs=False)
                continue
            with pytest.raises(InputError, match="ColBERT checkpoint"):
                check_run(pipeline([one]), catalog, only_missing_outputs=False)

    def test_all_problems_are_reported_at_once(self, refused, add_environment, tmp_path):
        environment = add_environment(
            "several",
            catalog={
                "tasks": jsonl(tmp_path / "no_tasks.jsonl"),
                "qa_pairs": jsonl(tmp_path / "no_pairs.jsonl"),
                "base_model": {
                    "type": "ja_instruct.datasets.ModelDirectoryDataset",
                    "filepath": str(tmp_path / "no_model"),
                },
            },
        )
        message = refused(environment)
        for name in ("no_tasks.jsonl", "no_pairs.jsonl", "no_model: no such model directory"):
            assert name in message

    @pytest.mark.parametrize(
        ("pipeline", "inputs", "makers"),
        [
            ("sft", ["quantized_model", "filtered_pairs"], ["quantization", "data_filtering"]),
            (
                "inference",
                ["quantized_model", "adapter", "retrieval_index"],
                ["quantization", "sft", "rag_index"],
            ),
        ],
    )
    def test_missing_inputs_name_the_pipelines_that_make_them(
        self, refused, add_environment, pipeline, inputs, makers
    ):
        message = refused(add_environment("early"), f"--pipeline={pipeline}")
        for name, maker in zip(inputs, makers, strict=True):
            assert f"'{name}': " in message
            assert f"'kedro run --pipeline={maker}'" in message
        assert "(with the same --env) makes it" in message


class TestParameters:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("sft.lora.lora_rr=8", "'sft.lora.lora_rr' is unknown; did you mean 'lora_r'?"),
            ("sft.max_seq_len=8", "'sft.max_seq_len' is unknown; did you mean 'max_seq_length'?"),
            (
                "inferrence.top_k=3",
                "'inferrence' is not a parameter section; did you mean 'inferen",
            ),
            ("zzz=3", "'zzz' is not a parameter section They"),
            ("sft.lora.lora_r=0", "'sft.lora.lora_r' = 0: Input should be greater than 0"),
            ("sft.lora.lora_r=many", "'sft.lora.lora_r' = 'many': Input should be a valid integer"),
            ("sft.device=tpu", "'sft.device' = 'tpu': Input should be 'cpu' or 'cuda'"),
            ("data_filtering.language=jp", "CLD2 has no language 'jp'"),
            ("inference.max_new_tokens=4096", "leaves no room for a prompt in max_seq_length"),
            ("sft.backend=unsloth", "on a CPU use backend 'peft'"),
            ("inference.batching.slots=3", "'inference.batching.slots' is now 'max_num_seqs'"),
            ("sft.model_card.licence=mit", "'sft.model_card.licence' is now 'license'"),
        ],
    )
    def test_on_the_command_line(self, refused, override, message):
        found = refused("--env=test", f"--params={override}")
        assert message in found
        assert "They come from conf/base, conf/test and --params." in found

    def test_in_a_file(self, refused, add_environment):
        environment = add_environment(
            "slips",
            parameters={"sft": {"training": {"learning_rte": 1}}, "quantization": {"device": None}},
        )
        message = refused(environment)
        assert "'sft.training.learning_rte' is unknown; did you mean 'learning_rate'?" in message
        assert "'quantization.device' = None" in message
        assert "conf/slips" in message

    def test_even_when_the_pipeline_does_not_use_it(self, refused):
        message = refused("--env=test", "--pipeline=rag_index", "--params=sft.lora.lora_r=0")
        assert "'sft.lora.lora_r' = 0" in message


def test_every_renamed_parameter_is_reported(read_parameters):
    configure_project("ja_instruct")
    values = deepcopy(dict(read_parameters("base")))
    for old, new in RENAMED_PARAMETERS.items():
        *sections, former = old.split(".")
        place = values
        for section in sections:
            place = place[section]
        assert new in place
        place[former] = 1
    context = SimpleNamespace(config_loader={"parameters": values}, env=None)
    with pytest.raises(InputError) as caught:
        check_parameters(context)
    problems = str(caught.value).splitlines()[1:-1]
    expected = [f"  - '{old}' is now '{new}'" for old, new in RENAMED_PARAMETERS.items()]
    assert sorted(problems) == sorted(expected)


class TestModels:
    def test_already_quantized_model(self, refused, add_environment, tiny_nf4):
        model = {
            "type": "ja_instruct.datasets.ModelDirectoryDataset",
            "filepath": str(tiny_nf4.path),
            "model_id": "someone/gemma-2-27b-bnb-4bit",
        }
        message = refused(add_environment("twice", catalog={"base_model": model}))
        assert "'someone/gemma-2-27b-bnb-4bit'" in message
        assert "is quantized already (bitsandbytes); give the publisher's 16-bit weights" in message

    def test_quantized_model_of_another_project(self, refused, add_environment, tiny_nf4, tmp_path):
        foreign = tmp_path / "foreign"
        shutil.copytree(tiny_nf4.path, foreign)
        (foreign / "ja_instruct.json").unlink()
        entry = {"type": "ja_instruct.datasets.QuantizedModelDataset", "filepath": str(foreign)}
        environment = add_environment("foreign", catalog={"quantized_model": entry})
        message = refused(environment, "--pipeline=inference")
        assert f"{foreign}: no ja_instruct.json, so this directory was not written by" in message

    def test_directory_without_a_model(self, refused, add_environment, tmp_path):
        model = {"type": "ja_instruct.datasets.ModelDirectoryDataset", "filepath": str(tmp_path)}
        message = refused(add_environment("no-model", catalog={"base_model": model}))
        assert f"'base_model': {tmp_path}: no config.json" in message

    @pytest.mark.parametrize(
        ("name", "entry", "repository"),
        [
            ("base_model", PRE_TRAINED, "model 'google/gemma-2-27b'"),
            ("raw_conversations", CONVERSATIONS, "dataset 'llm-jp/magpie-sft-v1.0'"),
        ],
    )
    def test_repository_that_is_not_in_the_cache(
        self, refused, add_environment, name, entry, repository
    ):
        message = refused(add_environment("offline", catalog={name: entry}))
        assert f"{repository} cannot be reached (offline mode is on)" in message
        assert "'--env=demo'" in message


class TestDevice:
    @pytest.fixture(autouse=True)
    def _no_gpu(self, tmp_path, monkeypatch):
        monkeypatch.setattr("kedro_cuda_runner.devices._layer", FakeDevices(tmp_path, count=0))

    def test_gpu_environment_without_gpu(self, refused, add_environment):
        environment = add_environment(
            "gpu",
            parameters={
                "quantization": {"device": "cuda"},
                "sft": {"device": "cuda", "backend": "unsloth"},
                "inference": {"device": "cuda", "backend": "unsloth", "engine": "one_by_one"},
            },
        )
        message = refused(environment)
        (named,) = re.findall(r"- (['\w, ]+): there is no CUDA device", message)
        nodes = "quantize measure_quantization train answer_tasks answer_with_base_model"
        assert set(named.split(", ")) == {f"'{name}'" for name in nodes.split()}
        assert "in an environment that needs none: '--env=demo' (a small real model), " in message

    @pytest.mark.parametrize("arguments", [(), ("--runner=kedro_cuda_runner.CudaRunner",)])
    def test_suggested_environments_are_those_of_the_project(
        self, refused, add_environment, arguments
    ):
        mine = add_environment("mine").removeprefix("--env=")
        gpu = add_environment("gpu", parameters={"sft": {"device": "cuda"}})
        message = refused(gpu, *arguments)
        listed = re.findall(r"'--env=(\w+)'", message)
        assert listed == sorted(["demo", "test", mine])

    def test_several_devices_need_the_cuda_runner(
        self, refused, add_environment, tmp_path, monkeypatch
    ):
        two = FakeDevices(tmp_path / "two", count=2)
        monkeypatch.setattr("kedro_cuda_runner.devices._layer", two)
        environment = add_environment(
            "two", parameters={"sft": {"device": "cuda", "gpu": {"devices": 2}}}
        )
        message = refused(environment, "--pipeline=sft")
        assert "node 'train' requests 2 devices" in message
        assert "add --runner=kedro_cuda_runner.CudaRunner" in message

    def test_pipelines_without_gpu_nodes_may_run(self, invoke_kedro, add_environment):
        environment = add_environment("gpu", parameters={"quantization": {"device": "cuda"}})
        result = invoke_kedro(environment, "--pipeline=data_filtering")
        assert result.exit_code == 0, result.output

    def test_base_on_a_computer_without_network_and_gpu(self, refused):
        message = refused("--env=base")
        assert "data/01_raw/tasks.jsonl: no such file" in message
        for repository in (
            "google/gemma-2-27b",
            "llm-jp/magpie-sft-v1.0",
            "tomo1222/Japanese-QA111dataset",
        ):
            assert f"'{repository}' cannot be reached" in message
        assert "there is no CUDA device" in message
        assert "'--env=demo'" in message


def test_in_a_process_of_its_own(run_kedro):
    done = run_kedro("--env=test", "--params=sft.lora.lora_rr=8")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: parameters cannot be used:\n")
    assert "did you mean 'lora_r'?" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
