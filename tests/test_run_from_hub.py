"""``base`` with nothing changed but sizes, from a hub on this computer to ``output.jsonl``."""

import io
import json
import shutil
from collections import Counter

import datasets
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from records import read_lines

MODEL, RETRIEVER = "google/gemma-2-27b", "bclavie/JaColBERTv2"
CONVERSATIONS, PAIRS = "llm-jp/magpie-sft-v1.0", "tomo1222/Japanese-QA111dataset"
TOKEN = "hf_of_these_tests"
CARD = b"---\nlicense: apache-2.0\n---\n# A card\n"
NOT_NEEDED = {"README.md": CARD, "pytorch_model.bin": b"pickle"}


def as_parquet(path):
    file = io.BytesIO()
    datasets.Dataset.from_list(read_lines(path)).to_parquet(file)
    return file.getvalue()


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(clean_project):
    """The hub with the names of ``base``: the model is gated, the data sets are the demo's."""
    server = HubServer()
    demo, models = clean_project / "data/01_raw/demo", clean_project / "data/06_models/test"
    server.tokens[TOKEN] = {MODEL}
    gemma = {**read_files(models / "tiny_gemma2"), **NOT_NEEDED}
    server.add(MODEL, gemma, is_gated=True)
    server.add(RETRIEVER, {**read_files(models / "tiny-colbert"), **NOT_NEEDED})
    conversations = as_parquet(demo / "conversations.jsonl")
    files = {"README.md": CARD, "data/train-00000-of-00001.parquet": conversations}
    server.add(CONVERSATIONS, files, repo_type="dataset")
    pairs = {"qa.jsonl": (demo / "qa_pairs.jsonl").read_bytes()}
    server.add(PAIRS, pairs, repo_type="dataset")
    yield server
    server.close()


@pytest.fixture(scope="module")
def project_for_hub(clean_project, tmp_path_factory):
    """A project without tiny models and with an environment of sizes, which has no catalog."""
    copy = tmp_path_factory.mktemp("from_hub") / "project"
    shutil.copytree(clean_project, copy, symlinks=True)
    shutil.rmtree(copy / "data/06_models")
    shutil.copy(copy / "data/01_raw/demo/tasks.jsonl", copy / "data/01_raw/tasks.jsonl")
    ignored = shutil.ignore_patterns("catalog*", "globals.yml")
    shutil.copytree(copy / "conf/test", copy / "conf/sizes", ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("hub_cache")


@pytest.fixture(scope="module")
def finished(hub, project_for_hub, cache, run_kedro):
    environment = {**hub.environment, "HF_TOKEN": TOKEN, "HF_HOME": str(cache)}
    done = run_kedro("--env=sizes", cwd=project_for_hub, env=environment)
    assert done.returncode == 0, done.stderr
    return project_for_hub / "data"


def test_every_task_is_answered(finished):
    tasks = read_lines(finished / "01_raw/tasks.jsonl")
    answers = read_lines(finished / "07_model_output/base/output.jsonl")
    assert [answer["task_id"] for answer in answers] == [task["task_id"] for task in tasks]
    assert any(answer["output"] for answer in answers)


def test_outputs_are_those_of_the_same_files_on_the_disk(finished, finished_project):
    """The data sets and models are those of the environment ``test``."""
    for path in ("03_primary/{}/filtered_pairs.jsonl", "07_model_output/{}/output.jsonl"):
        from_disk = finished_project / "data" / path.format("test")
        assert (finished / path.format("base")).read_bytes() == from_disk.read_bytes()


def test_commit_of_the_model_is_recorded(finished, hub):
    provenance = json.loads(
        (finished / "06_models/base/quantized_model/ja_instruct.json").read_text()
    )
    (commit,) = hub.repositories["model", MODEL].commits
    assert provenance["source"]["model_id"] == MODEL
    assert provenance["source"]["revision"] == commit


def test_what_is_needed_is_downloaded_once(finished, hub):
    # a part: the header of the weights, read before the run
    whole = [one for one in hub.requests if one.method == "GET" and one.range is None]
    downloads = Counter(one.path for one in whole)
    stored = Counter({path: n for path, n in downloads.items() if path.startswith("/lfs/")})
    assert len(stored) == 3  # the weights of both models and the Parquet file
    assert set(stored.values()) == {1}
    assert not [path for path in downloads if path.endswith("/pytorch_model.bin")]


@pytest.mark.usefixtures("finished")
def test_offline_the_caches_are_enough(project_for_hub, cache, monkeypatch, invoke_kedro):
    """Test processes are offline."""
    # before the constant, which this module copies when it is imported
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    result = invoke_kedro("--env=sizes", "--only-missing-outputs", cwd=project_for_hub)
    assert "sft, rag_index, inference, reporting" in result.output.partition("skipped: ")[2]
    index = project_for_hub / "data/04_feature/base/retrieval_index"
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    result = invoke_kedro("--env=sizes", "--pipeline=rag_index", cwd=project_for_hub)
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
