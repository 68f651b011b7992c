import pytest


@pytest.fixture(scope="module")
def figures(benchmark_module):
    return benchmark_module("generation.figures")


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("generation.bench_generation")


def measured(**changes):
    """Return the result of a side of ours: two answers of 3 tokens each, one by one."""
    answer = {"prompt_tokens": 10, "new_tokens": 3, "error": ""}
    return {
        "status": "done",
        "load_seconds": 7.0,
        "answers": [{**answer, "position": 0}, {**answer, "position": 1}],
        "prepare_seconds": 2.0,
        "generate_seconds": 1.5,
        "prefill_seconds": 0.5,
        "steps": 4,
        "batch_sizes": [1],
        **changes,
    }


def test_one_task_is_extrapolated_to_the_whole_job(figures):
    answer = {"prompt_tokens": 50, "new_tokens": 5, "prefill_seconds": 3.0, "decode_seconds": 2.0}
    row = figures.summarize({"status": "done", "answers": [answer]}, tasks=10, new_tokens=101)
    assert row["step_ms"] == 500.0
    assert row["whole_job_seconds"] == 10 * (3 + 100 * 0.5)
    assert row["tokens_per_second"] == pytest.approx(10 * 101 / 530, abs=1e-3)


def test_rate_leaves_out_loading_and_preparation(figures):
    row = figures.summarize(measured(), tasks=100, new_tokens=8)
    assert row["tokens_per_second"] == 4.0
    assert row["whole_job_seconds"] == 200.0
    assert (row["load_seconds"], row["prepare_seconds"]) == (7.0, 2.0)
    assert row["step_ms"] == 250.0


def test_failed_answers_do_not_count_and_are_reported(figures):
    result = measured()
    result["answers"][1] |= {"new_tokens": 0, "error": "OutOfMemoryError: none"}
    row = figures.summarize(result, tasks=2, new_tokens=3)
    assert row["answers"] == 1
    assert row["errors"] == ["OutOfMemoryError: none"]
    assert row["tokens_per_second"] == 2.0


@pytest.mark.parametrize("result", [{}, {"answers": []}, {"load_seconds": 3.0, "answers": []}])
def test_side_that_failed_early_has_no_rate_and_no_ratio(figures, result):
    failed = figures.summarize({"status": "failed with code 1", **result}, 10, 10)
    sides = {"original": failed, "ours": figures.summarize(measured(), 2, 3)}
    figures.add_ratios(sides)
    assert sides["ours"]["ratio"] is None
    assert sides["original"]["status"] == "failed with code 1"


def test_stopped_side_has_a_rate(figures):
    stopped = measured(status="stopped after 9 s")
    del stopped["prefill_seconds"]
    assert figures.summarize(stopped, 2, 3)["tokens_per_second"] == 4.0


def test_ratio_is_ours_over_the_originals(figures):
    answer = {"prompt_tokens": 10, "new_tokens": 3, "prefill_seconds": 1.0, "decode_seconds": 2.0}
    original = figures.summarize({"status": "done", "answers": [answer]}, 2, 3)
    sides = {"original": original, "ours": figures.summarize(measured(), 2, 3)}
    figures.add_ratios(sides)
    assert sides["ours"]["ratio"] == 4.0


def test_parameters_of_every_side_are_valid(bench, benchmark_module):
    product = benchmark_module("generation.product")
    sides = {name: side for name, side in bench.SIDES.items() if "way" not in side}
    assert len(sides) > 6
    for name, side in sides.items():
        parameters = product.read_parameters("base", side["changes"])
        assert parameters.engine == ("one_by_one" if name == "one-by-one" else "batched")
        assert parameters.batching.has_int8_cache == (
            name.endswith("-int8") or name == "warm-up-nf4"
        )


def test_prompts_have_about_the_given_length_and_are_reproducible(bench, benchmark_module):
    tokenizer = benchmark_module("harness.random_models").make_tokenizer()
    prompts = bench.draw_prompts(40, 500)
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert min(lengths) >= 400
    assert max(lengths) <= 512
    assert max(lengths) - min(lengths) > 80
    assert bench.draw_prompts(40, 500) == prompts


def test_tokens_before_the_first_difference_are_counted(figures):
    ones, others = ["1 2 3 4", "5 6", "7 8"], ["1 2 9 4", "5 6", "8 8"]
    found = figures.compare_answers([one.split() for one in ones], [one.split() for one in others])
    assert found["equal_answers"] == 1
    assert found["share_of_tokens_before_a_difference"] == 0.5


def test_reference_has_the_recipes_settings(benchmark_module, read_parameters):
    reference = benchmark_module("generation.reference")
    inference = read_parameters("base")["inference"]
    assert inference["repetition_penalty"] == reference.REPETITION_PENALTY
    assert tuple(inference["bad_words"]) == reference.BAD_WORDS
    assert inference["max_seq_length"] == reference.MAX_SEQ_LENGTH
