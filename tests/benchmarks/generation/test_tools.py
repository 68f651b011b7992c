import json
import sys

import pytest

from ja_instruct.prompts import PromptParameters

PAIRS = [{"input": f"問い{i}", "output": f"答え{i}" * (1 + 40 * (i == 9))} for i in range(10)]


@pytest.fixture
def run(benchmark_module, monkeypatch):
    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        benchmark_module(f"generation.{name}").main()

    return call


def test_prompts_are_the_recipes_with_other_pairs_as_examples(run, tmp_path, read_parameters):
    pool, out = tmp_path / "pool.jsonl", tmp_path / "prompts.jsonl"
    pool.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in PAIRS), "utf-8")
    arguments = ("--pool", pool, "--out", out, "--tasks", 9, "--examples", 3, "--characters", 60)
    run("few_shot_prompts", *arguments)
    prompts = [json.loads(line)["prompt"] for line in out.read_text("utf-8").splitlines()]
    texts = PromptParameters(**read_parameters("base")["prompts"])
    tasks = [prompt.rpartition("### 質問:\n")[2].split("\n")[0] for prompt in prompts]
    assert sorted(tasks) == [pair["input"] for pair in PAIRS[:9]]
    for task, prompt in zip(tasks, prompts, strict=True):
        assert prompt.startswith(texts.few_shot_header)
        assert sum(pair["output"] in prompt for pair in PAIRS[:9]) == 3
        # no pair is its own example
        assert prompt.count(task) == 1
    first = out.read_bytes()
    run("few_shot_prompts", *arguments)
    assert out.read_bytes() == first


def test_pool_that_is_too_small_is_named(run, tmp_path, capsys):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(PAIRS[0]) + "\n")
    with pytest.raises(SystemExit):
        run("few_shot_prompts", "--pool", pool, "--out", tmp_path / "out")
    assert "pool.jsonl has 1 pairs that are short enough" in capsys.readouterr().err


def test_profile_prints_prefill_and_step(run, benchmark_module, tmp_path, capsys):
    model, adapter = tmp_path / "nf4", tmp_path / "adapter"
    models = benchmark_module("harness.random_models")
    models.make_model(model, "nf4", "tiny", device="cpu")
    models.make_adapter(adapter, model)
    numbers = ("--max-num-seqs", 2, "--prompt-tokens", 20, "--answer-tokens", 5, "--new-tokens", 12)
    paths = ("--model", model, "--adapter", adapter, "--device", "cpu")
    run("profile_generation", *paths, *numbers, "--chunks", "8,32")
    out = capsys.readouterr().out
    for line in ("in chunks of 8:", "in chunks of 32:", "step of 2 sequences at token 25:"):
        assert line in out
