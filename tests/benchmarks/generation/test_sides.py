"""The sides of ``bench_generation.py`` on the tiny shape."""

import argparse
import inspect
import json
import shutil
from pathlib import Path

import pytest

from ja_instruct.engine.backends import load_engine

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def model(benchmark_module, tmp_path_factory):
    directory = tmp_path_factory.mktemp("generation") / "nf4"
    benchmark_module("harness.random_models").make_model(directory, "nf4", "tiny", device="cpu")
    return directory


@pytest.fixture(scope="module")
def adapter(benchmark_module, model):
    directory = model.with_name("adapter")
    benchmark_module("harness.random_models").make_adapter(directory, model)
    return directory


@pytest.fixture(scope="module")
def job(benchmark_module, model, adapter):
    prompts = model.with_name("prompts.json")
    prompts.write_text(
        json.dumps(benchmark_module("generation.bench_generation").draw_prompts(5, 40))
    )
    return {
        "prompts": str(prompts),
        "model": str(model),
        "adapter": str(adapter),
        "device": "cpu",
        "environment": "base",
        "tasks": 5,
        "new_tokens": NEW_TOKENS,
        "memory_gb": None,
        "keep_text": True,
        "changes": {"batching.max_num_seqs": 2},
    }


@pytest.fixture(scope="module")
def generated(benchmark_module, job, tmp_path_factory):
    path = tmp_path_factory.mktemp("result") / "ours.json"
    benchmark_module("generation.product").generate(job, path)
    return json.loads(path.read_text("utf-8"))


def load_plain(directory):
    from ja_instruct.datasets import QuantizedModelDataset
    from ja_instruct.models.loading import load_nf4_model

    return load_nf4_model(QuantizedModelDataset(filepath=directory).load(), "cpu")


class TestAdapter:
    def test_no_factor_is_zero(self, adapter):
        from safetensors.torch import load_file

        factors = load_file(adapter / "adapter_model.safetensors")
        # layers, matrices, factors
        assert len(factors) == 2 * 7 * 2
        for factor in factors.values():
            assert factor.std().item() == pytest.approx(0.02, rel=0.1)

    def test_changes_the_logits(self, model, adapter):
        import torch
        from peft import PeftModel

        ids = torch.arange(300, 320)[None]
        with torch.inference_mode():
            without = load_plain(model)(ids).logits
            adapted = PeftModel.from_pretrained(load_plain(model), str(adapter))(ids).logits
        assert (without - adapted).abs().max() > 0.01

    def test_product_accepts_it(self, model, adapter):
        from ja_instruct.datasets import AdapterDataset
        from ja_instruct.models.json_files import read_provenance

        provenance = AdapterDataset(filepath=adapter).load().provenance
        assert provenance["stage"] == "sft"
        weights = read_provenance(model)["weights_sha256"]
        assert provenance["base"]["weights_sha256"] == weights

    def test_is_made_again_only_for_other_weights(self, benchmark_module, model, adapter, tmp_path):
        maker = benchmark_module("harness.random_models")
        made = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
        maker.find_or_make_adapter(adapter, model)
        assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == made
        copy = tmp_path / "adapter"
        maker.find_or_make_adapter(copy, model)
        assert (copy / "ja_instruct.json").is_file()


class TestProduct:
    def test_no_answer_ends_early(self, generated):
        assert sorted(one["position"] for one in generated["answers"]) == list(range(5))
        assert {one["new_tokens"] for one in generated["answers"]} == {NEW_TOKENS}
        assert not any(one["error"] for one in generated["answers"])

    def test_steps_are_counted(self, generated):
        # batches of two, three rounds; the prefill gives the first token
        assert generated["steps"] == 3 * (NEW_TOKENS - 1)
        assert generated["batch_sizes"] == [2]
        assert 0 < generated["prefill_seconds"] < generated["generate_seconds"]

    def test_figures_follow_from_it(self, benchmark_module, generated):
        figures = benchmark_module("generation.figures")
        row = figures.summarize({"status": "done", **generated}, 5, NEW_TOKENS)
        assert row["new_tokens"] == 5 * NEW_TOKENS
        assert row["step_ms"] > 0

    def test_answers_are_read_as_token_ids(self, generated):
        texts = [one["text"].split() for one in generated["answers"]]
        assert [len(text) for text in texts] == [NEW_TOKENS] * 5
        assert all(token.isdecimal() for text in texts for token in text)
        assert len(set(map(tuple, texts))) == 5

    def test_answers_equal_those_of_one_by_one(self, benchmark_module, job, generated, tmp_path):
        bench = benchmark_module("generation.bench_generation")
        changes = {"changes": bench.ONE_BY_ONE}
        benchmark_module("generation.product").generate({**job, **changes}, tmp_path / "one.json")
        one = json.loads((tmp_path / "one.json").read_text("utf-8"))
        for name, result in (("float32", generated), ("one-by-one", one)):
            path = tmp_path / f"equal-{name}.json"
            path.write_text(json.dumps({**result, "status": "done"}), "utf-8")
        options = argparse.Namespace(folder=tmp_path, device="cpu")
        (compared,) = bench.compare_engines(options).values()
        assert compared["equal_answers"] == compared["answers"] == 5

    @pytest.mark.parametrize("engine", ["batched", "one_by_one"])
    def test_stop_tokens_do_not_end_an_answer(
        self, benchmark_module, job, generated, model, tmp_path, engine
    ):
        """With its fourth token as EOS, an answer of the plain directory ends there."""
        product = benchmark_module("generation.product")
        (said,) = (one["text"] for one in generated["answers"] if one["position"] == 0)
        said = [int(token) for token in said.split()]
        copy = shutil.copytree(model, tmp_path / "model")
        for name in ("config.json", "generation_config.json"):
            content = json.loads((copy / name).read_text("utf-8"))
            (copy / name).write_text(json.dumps({**content, "eos_token_id": said[3]}))
        adapter = product.adapter_at(Path(job["adapter"]))
        parameters = product.read_parameters(
            "base", {"device": "cpu", "engine": engine, "max_new_tokens": NEW_TOKENS}
        )
        (prompt, *_) = json.loads(Path(job["prompts"]).read_text("utf-8"))
        counts = []
        for kind in (product.EndlessModel.at(copy), product.adapter_at(copy)):
            loaded = load_engine(kind, adapter, parameters)
            ((_, answer),) = loaded.generate([prompt])
            counts.append(answer.new_tokens)
        assert counts == [NEW_TOKENS, said.index(said[3]) + 1]


class TestReference:
    def test_answers_have_the_given_length(self, benchmark_module, job):
        reference = benchmark_module("generation.reference")
        model, tokenizer = reference.load_with_transformers(job["model"], job["adapter"])
        one = reference.answer(model, tokenizer, "亜" * 20, 4)
        assert (one["prompt_tokens"], one["new_tokens"]) == (21, 4)
        assert one["prefill_seconds"] > 0
        assert one["decode_seconds"] > 0


def test_clock_restores_the_class(benchmark_module, model):
    import torch
    from transformers import Gemma2ForCausalLM

    clock_class = benchmark_module("generation.product").ForwardClock
    before = Gemma2ForCausalLM.forward, torch.cuda.CUDAGraph.replay
    with clock_class(model) as clock:
        assert inspect.signature(Gemma2ForCausalLM.forward) == inspect.signature(before[0])
        loaded = load_plain(model)
        loaded(input_ids=torch.ones(3, 5, dtype=torch.long))
        loaded(torch.ones(3, 1, dtype=torch.long))
    assert (Gemma2ForCausalLM.forward, torch.cuda.CUDAGraph.replay) == before
    assert (clock.steps, clock.batch_sizes) == (1, [3])
    assert clock.first_call is not None
    assert clock.prefill_seconds() > 0
