import pytest


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("training.bench_training")


def test_rates_leave_out_the_warm_up(bench):
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
    assert figures["seconds_per_step"] == 3.0


@pytest.mark.parametrize(
    "result", [{}, {"step_seconds": [9.0]}, {"step_seconds": [], "tokens": []}]
)
def test_side_that_failed_early_has_no_rate(bench, result):
    assert bench.summarize({"status": "failed", **result}, 2)["real_tokens_per_second"] is None


def test_samples_are_reproducible_and_need_no_truncation(bench):
    drawn = bench.usual_samples(64, 512)
    assert drawn == bench.usual_samples(64, 512)
    assert len({prompt for prompt, _ in drawn}) == 64
    # BOS and EOS are added
    assert all(len(prompt + answer) + 2 <= 512 for prompt, answer in drawn)


def test_lengths_are_those_of_the_recipes_filter(benchmark_module):
    lengths = benchmark_module("training.conversation_lengths").read_lengths()
    assert len(lengths) == 6506
    # the prompt's fixed text alone, and EOS
    assert min(prompt for prompt, _ in lengths) > 40
    assert min(answer for _, answer in lengths) >= 0


def test_padding_is_counted_by_batch(benchmark_module):
    padding_share = benchmark_module("training.conversation_lengths").padding_share
    assert padding_share([100] * 8) == 0
    assert padding_share([100, 100, 100, 200]) == pytest.approx(1 - 500 / 800)


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
    """Compare with ``conf/base`` where both have the argument."""
    reference = benchmark_module("training.reference")
    sft = read_parameters("base")["sft"]
    same = reference.ARGUMENTS.keys() & sft["training"].keys()
    same -= {"logging_steps", "save_strategy", "report_to"}
    assert len(same) >= 12
    for name in same:
        assert reference.ARGUMENTS[name] == sft["training"][name], name
    assert sft["max_seq_length"] == reference.MAX_SEQ_LENGTH
    assert list(sft["lora"]["target_modules"]) == reference.TARGET_MODULES
    for ours, theirs in (("r", "lora_r"), ("lora_alpha",) * 2, ("lora_dropout",) * 2):
        assert reference.LORA[ours] == sft["lora"][theirs]
