"""``kedro run --pipeline=export`` and the like, after a whole run of ``test``."""

import json
import shutil

import pytest
import torch
import yaml

CONVERTER = """
import sys
from pathlib import Path
Path(sys.argv[3]).write_bytes(b"GGUF")
"""


@pytest.fixture(scope="module")
def copied(finished_project, tmp_path_factory):
    copy = tmp_path_factory.mktemp("export") / "project"
    return shutil.copytree(finished_project, copy, symlinks=True)


@pytest.fixture
def set_entry(copied):
    """A function that changes an entry of the catalog."""

    def change(file, name, **settings):
        path = copied / "conf/base" / file
        catalog = yaml.safe_load(path.read_text("utf-8"))
        catalog[name] |= settings
        path.write_text(yaml.safe_dump(catalog), "utf-8")

    return change


@pytest.fixture(scope="module")
def exported(copied, run_kedro):
    process = run_kedro("--pipeline=export", "--env=test", cwd=copied)
    assert process.returncode == 0, process.stderr
    return copied / "data"


def message(result):
    return f"{result.output}{result.exception}"


def test_merged_model_answers_as_the_adapter_does(exported):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = exported / "06_models/test"
    load = AutoModelForCausalLM.from_pretrained
    merged = load(models / "merged_model").eval()
    adapted = PeftModel.from_pretrained(load(models / "tiny_gemma2"), models / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "merged_model")
    inputs = tokenizer("日本の首都はどこですか?", return_tensors="pt")
    with torch.no_grad():
        found, expected = merged(**inputs).logits, adapted(**inputs).logits
        with adapted.disable_adapter():
            base = adapted(**inputs).logits
    assert (found - expected).abs().max() < 2e-3
    assert (found - base).abs().max() > (found - expected).abs().max()


def test_report_covers_all_matrices(exported):
    report = json.loads((exported / "08_reporting/test/export_report.json").read_text("utf-8"))
    assert report["summary"]["matrices_changed"] == report["summary"]["matrices"] == 14
    notes = json.loads((exported / "06_models/test/merged_model/ja_instruct.json").read_text())
    assert report["weights_sha256"] == notes["weights_sha256"]


def test_gguf_needs_a_copy_of_llama_cpp(exported, copied, invoke_kedro, set_entry, tmp_path):
    result = invoke_kedro("--pipeline=gguf_export", "--env=test", cwd=copied)
    assert result.exit_code
    assert "gguf_converter" in message(result)
    assert "'llama_cpp_dir' of this catalog entry is not set" in message(result)
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    set_entry("catalog_export.yml", "gguf_converter", llama_cpp_dir=str(tmp_path))
    result = invoke_kedro("--pipeline=gguf_export", "--env=test", cwd=copied)
    assert result.exit_code == 0, result.output
    assert (exported / "06_models/test/model.gguf").read_bytes() == b"GGUF"


@pytest.mark.parametrize("name", ["quantized_model", "adapter", "merged_model"])
def test_publishing_without_a_repository_is_refused(exported, copied, invoke_kedro, name):
    arguments = ("--pipeline=publishing", f"--nodes=publish_{name}", "--env=test")
    result = invoke_kedro(*arguments, cwd=copied)
    assert result.exit_code
    assert f"published_{name}" in message(result)
    assert "'repo_id' of this catalog entry" in message(result)


def test_publishing_needs_a_login(exported, copied, invoke_kedro, set_entry):
    set_entry("catalog_publishing.yml", "published_adapter", repo_id="me/adapter")
    arguments = ("--pipeline=publishing", "--nodes=publish_adapter", "--env=test")
    result = invoke_kedro(*arguments, cwd=copied)
    assert result.exit_code
    assert "run 'hf auth login'" in message(result)
    assert not (exported / "08_reporting/test/published_adapter.json").exists()
