import pytest


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("training.bench_training")


def test_rate_leaves_out_the_steps_of_the_warm_up(bench):
    result = {
        "status": "done",
        "step_seconds": [60.0, 2.0, 4.0],
        "tokens": [100, 200, 800],
        "padded_tokens": [200, 300, 900],
        "losses": [1.0, 2.0, 3.0],
    }
    figures = bench.summarize(result, 1)
    assert figures["real_tokens_per_second"] == pytest.approx(1000 / 6, abs=0.1)
    assert figures["padded_tokens_per_second"] == 200.0
    assert figures["median_real_tokens_per_second"] == 150.0
    assert figures["warm_up_seconds"] == 60.0


@pytest.mark.parametrize(
    "result", [{}, {"step_seconds": [9.0]}, {"step_seconds": [], "tokens": []}]
)
def test_side_that_failed_early_has_no_rate(bench, result):
    assert bench.summarize({"status": "failed", **result}, 2)["real_tokens_per_second"] is None


def test_losses_are_compared_by_step_and_say_whether_the_samples_were_the_same(bench):
    one = {"losses": [2.0, 1.5, 1.0], "tokens": [10, 20, 30]}
    same = bench.compare_losses(one, {"losses": [2.0, 1.6], "tokens": [10, 20]})
    assert same["same_tokens_by_step"]
    assert same["largest_difference"] == pytest.approx(0.1)
    assert same["mean_difference"] == pytest.approx(0.05)
    other = bench.compare_losses(one, {"losses": [2.0, 1.6], "tokens": [20, 10]})
    assert not other["same_tokens_by_step"]


def test_settings_change_one_side_alone_and_may_add_one(bench):
    import copy

    sides = copy.deepcopy(bench.SIDES)
    bench.apply_settings(
        sides,
        [
            "ours:training.tokens_per_batch=4096",
            "ours-24gb:memory_gb=null",
            "ours-8k:training.tokens_per_batch=8192",
        ],
        bench.OURS,
    )
    assert sides["ours"]["changes"] == {"training.tokens_per_batch": 4096}
    assert sides["ours-24gb"]["memory_gb"] is None
    assert sides["ours-24gb-longest"]["memory_gb"] == bench.MEMORY_GB_OF_24
    assert sides["ours-8k"]["changes"] == {"training.tokens_per_batch": 8192}
    assert bench.OURS["changes"] == {}
    with pytest.raises(SystemExit, match="give SIDE:NAME=VALUE"):
        bench.apply_settings(sides, ["ours:steps"], bench.OURS)


def test_samples_have_the_tokens_that_the_lengths_say(benchmark_module):
    samples = benchmark_module("training.samples")
    tokenizer = benchmark_module("harness.character_tokenizer").make_tokenizer()
    drawn = samples.random_samples([(30, 5), (2, 3)], seed=0)
    counted = [len(tokenizer(prompt + answer + "<eos>")["input_ids"]) for prompt, answer in drawn]
    assert counted == [35, 5]
    assert [len(tokenizer(prompt)["input_ids"]) for prompt, _ in drawn] == [30, 2]
    longest = samples.longest_samples(2, 64 + samples.ANSWER_OF_LONGEST)
    assert {len(prompt + answer) + 2 for prompt, answer in longest} == {
        64 + samples.ANSWER_OF_LONGEST
    }


def test_every_side_gets_the_same_samples(benchmark_module):
    samples = benchmark_module("training.samples")
    drawn = samples.usual_samples(64, 512)
    assert drawn == samples.usual_samples(64, 512)
    assert len({prompt for prompt, _ in drawn}) == 64
    assert all(len(prompt + answer) + 2 <= 512 for prompt, answer in drawn)


def test_lengths_are_those_of_the_recipes_filter_and_cover_prompt_and_answer(benchmark_module):
    lengths = benchmark_module("training.conversation_lengths").read_lengths()
    assert len(lengths) == 6506
    # the prompt's fixed text alone, and EOS
    assert min(prompt for prompt, _ in lengths) > 40
    assert min(answer for _, answer in lengths) >= 0


def test_padding_is_counted_by_batch(benchmark_module):
    lengths = benchmark_module("training.conversation_lengths")
    assert lengths.padding_at_random([100] * 8) == 0
    assert lengths.padding_at_random([100, 100, 100, 200]) == pytest.approx(1 - 500 / 800)
    assert lengths.padding_in_sorted_steps([100, 100, 200, 200], 400) == 0
    assert lengths.padding_in_sorted_steps([100, 100, 200, 200], 800) == pytest.approx(
        1 - 600 / 800
    )


def test_counting_collator_sums_micro_batches_by_step(benchmark_module):
    import torch

    reference = benchmark_module("training.reference")
    counting = reference.CountingCollator(
        lambda examples: {"input_ids": torch.zeros(len(examples), 10)}
    )
    for lengths in ([3, 10], [10, 1], [10, 10], [2, 10], [10, 9]):
        counting([{"input_ids": [0] * length} for length in lengths])
    assert counting.by_step(2, 2) == ([24, 32], [40, 40])


def test_reference_has_the_recipes_arguments(benchmark_module, read_parameters):
    """What the original's way is asked to do is what ``conf/base`` says, where both name it."""
    reference = benchmark_module("training.reference")
    sft = read_parameters("base")["sft"]
    same = reference.ARGUMENTS.keys() & sft["training"].keys()
    measured = {"logging_steps", "save_strategy", "report_to"}
    assert len(same - measured) >= 12
    for name in same - measured:
        assert reference.ARGUMENTS[name] == sft["training"][name], name
    assert sft["max_seq_length"] == reference.MAX_SEQ_LENGTH
    assert list(sft["lora"]["target_modules"]) == reference.TARGET_MODULES
    assert reference.LORA["r"] == sft["lora"]["lora_r"]
    assert reference.LORA["lora_alpha"] == sft["lora"]["lora_alpha"]
    assert reference.LORA["lora_dropout"] == sft["lora"]["lora_dropout"]
