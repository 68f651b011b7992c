"""What the kernels' benchmark makes of its figures, and that it times what it says."""

import argparse
import sys

import pytest
import torch

from ja_instruct.engine.kernels.nf4_matmul import Blocks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("generation.bench_generation_kernels")


@pytest.fixture(scope="module")
def timing(benchmark_module):
    return benchmark_module("generation.kernel_timing")


@pytest.fixture(scope="module")
def matrices(benchmark_module):
    return benchmark_module("generation.kernel_matrices")


@pytest.fixture(scope="module")
def operations(benchmark_module):
    return benchmark_module("generation.kernel_operations")


def measured(matrices, **ways):
    """Return figures of all matrices for 40 rows: of ways, microseconds and error."""
    found = {way: {"us": us, "error": error} for way, (us, error) in ways.items()}
    return {name: {40: {"arranging": {"us": 1.0}, **found}} for name in matrices.MATRICES}


def step_clock(calls):
    """Call everything once, as a clock does; it took a microsecond each."""
    for call in calls:
        call()
    return 1.0


def test_cuts_are_read(bench):
    assert bench.parse_cuts("128,2,4,4,joined; 64,3,4,3;") == {
        "128,2,4,4,joined": Blocks(128, 2, 4, 4, joined=True),
        "64,3,4,3": Blocks(64, 3, 4, 3),
    }
    assert bench.parse_cuts("") == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("128,2,4", "give OUTPUTS,PROGRAMS,WARPS,STAGES"),
        ("128,2,4,4,apart", "give OUTPUTS"),
        ("128,2,4,4,4", "give OUTPUTS"),
        ("128,2,-4,4", "give OUTPUTS"),
        ("joined", "give OUTPUTS"),
        ("96,2,4,4", "a power of 2"),
        ("8,2,4,4", "from 16 on"),
        ("64,2,3,4", "warps a power of 2"),
        ("64,0,4,4", "nothing is 0"),
    ],
)
def test_what_is_no_cut_is_refused_by_its_name(bench, text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason) as refused:
        bench.parse_cuts(f"64,3,4,3;{text}")
    assert f"'{text}'" in str(refused.value)


def test_without_a_gpu_it_says_so_and_fails(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_generation_kernels.py"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    # a text as the code is printed, and the exit status 1
    assert "no CUDA device is found" in stopped.value.code


def test_without_triton_it_says_so(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ja_instruct.engine.kernels.triton.triton", None)
    assert "Triton" in bench.find_lack()


def test_matrices_are_those_of_the_model(bench, matrices, operations, benchmark_module):
    shape = benchmark_module("harness.random_models").SHAPES["gemma-2-27b"]
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    heads, key_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    width = shape["head_dim"]
    found = {name: matrix[:3] for name, matrix in matrices.MATRICES.items()}
    assert found == {
        "q": (heads * width, hidden, 1),
        "k, v": (key_heads * width, hidden, 2),
        "o": (hidden, heads * width, 1),
        "gate, up": (wide, hidden, 2),
        "down": (hidden, wide, 1),
    }
    assert shape["num_hidden_layers"] == bench.LAYERS
    assert (heads, key_heads, width) == (operations.HEADS, operations.KEY_HEADS, operations.WIDTH)
    assert (hidden, wide) == (operations.HIDDEN, operations.INTERMEDIATE)
    assert (
        shape["attn_logit_softcapping"],
        shape["query_pre_attn_scalar"] ** -0.5,
    ) == (operations.SOFTCAP, operations.SCALING)


def test_sums_are_of_seven_matrices_and_four_inputs_in_order(bench, matrices):
    figures = measured(
        matrices, ours=(10.0, 1e-3), bitsandbytes=(30.0, 2e-3), cut=(20.0, 1e-3), bfloat16=(5.0, 0)
    )
    figures["down"][40]["ours"] = {"us": 12.0, "error": 3e-3}
    sums = bench.sum_layers(figures)[40]
    # rows are brought into order for our kernel alone, however it is cut
    assert sums["ours"]["ms"] == pytest.approx(46 * (6 * 10 + 12 + 4) / 1e3)
    assert sums["cut"]["ms"] == pytest.approx(46 * (7 * 20 + 4) / 1e3)
    assert sums["bitsandbytes"]["ms"] == pytest.approx(46 * 7 * 30 / 1e3)
    assert sums["bfloat16"]["ms"] == pytest.approx(46 * 7 * 5 / 1e3)
    assert sums["ours"]["error"] == 3e-3


def test_ratio_is_how_many_times_as_fast_ours_is(bench, matrices):
    figures = measured(matrices, ours=(10.0, 0), bitsandbytes=(37.0, 0))
    for by_rows in figures.values():
        by_rows[40]["arranging"]["us"] = 0.0
    sums = bench.sum_layers(figures)[40]
    assert sums["bitsandbytes"]["ratio"] == pytest.approx(3.7)
    assert sums["ours"]["ratio"] == 1.0


def test_cut_that_did_not_run_everywhere_has_no_sum_but_a_place_in_the_table(
    bench, matrices, capsys
):
    figures = measured(matrices, ours=(10.0, 0.001), cut=(8.0, 0.001))
    del figures["down"][40]["cut"]
    sums = bench.sum_layers(figures)
    assert list(sums[40]) == ["ours"]
    bench.print_sums(sums)
    bench.print_matrices(figures, 40)
    lines = capsys.readouterr().out.splitlines()
    (down,) = [line for line in lines if line.startswith("down")]
    assert down.split() == ["down", "1.0", "10.0", "-", "us"]


def test_comparisons_are_printed_a_line_each(bench, capsys):
    row = {"ours_us": 2.0, "theirs_us": 9.0, "ratio": 4.5, "ours_error": 1e-3, "theirs_error": 0.01}
    bench.print_comparisons("fused layers", {"norm": row})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["norm", "2.0", "9.0", "4.50", "1.0e-03", "1.0e-02"]


def test_figures_are_rounded_and_can_be_json(bench):
    assert bench.rounded({40: {"us": 1.23456789, "name": "x"}}) == {
        "40": {"us": 1.2346, "name": "x"}
    }


def test_error_is_that_of_all_outputs_together(timing):
    exact = (torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]))
    output = (torch.tensor([3.0, 0.3]), torch.tensor([[4.4]]))
    assert timing.relative_error(exact, exact) == 0
    assert timing.relative_error(output, exact) == pytest.approx(0.1)


def test_outputs_of_another_shape_or_not_finite_are_no_result(timing):
    with pytest.raises(ValueError, match="shapes"):
        timing.relative_error(torch.ones(1, 2), torch.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        timing.relative_error(torch.tensor([1.0, torch.nan]), torch.ones(2))


def test_what_a_kernel_leaves_out_is_seen(timing):
    def leave_out():
        output = torch.empty(8, dtype=torch.bfloat16)
        output[:7] = 1
        return output

    with pytest.raises(ValueError, match="not finite"):
        timing.compare(leave_out, lambda: torch.ones(8), lambda: torch.ones(8), step_clock)
    assert not torch.are_deterministic_algorithms_enabled()


def test_both_sides_are_compared_with_the_exact_one(timing):
    row = timing.compare(
        lambda: torch.tensor([1.1]),
        lambda: torch.tensor([1.2]),
        lambda: torch.tensor([1.0]),
        lambda calls: float(calls[0]() * 100 - 100),
    )
    assert row["ours_error"] == pytest.approx(0.1)
    assert row["theirs_error"] == pytest.approx(0.2)
    assert row["ratio"] == pytest.approx(2.0)


def fake_nf4_matmul(x, weight, *, arranged, blocks):
    """Fail where a program would have 1 warp, else return zeros: an error of 1."""
    if blocks is not None and blocks.warps == 1:
        raise RuntimeError("out of resource")
    return x.new_zeros(len(x), weight.outputs)


def test_each_way_is_measured_and_a_cut_that_fails_is_told(matrices, monkeypatch, capsys):
    monkeypatch.setattr(matrices, "nf4_matmul", fake_nf4_matmul)
    matrix = matrices.Matrix(96, 128, 1, 1)
    copies = [matrices.make_copy(matrix, CPU) for _ in range(2)]
    cuts = {"bad": Blocks(64, 1, 1, 1), "good": Blocks(64, 1, 2, 1)}
    found = matrices.measure_matrix(matrix, (2, 4), cuts, copies, step_clock)
    assert list(found) == [2, 4]
    assert set(found[4]) == {"arranging", "ours", "bitsandbytes", "bfloat16", "good"}
    assert found[4]["ours"] == {"us": 1.0, "error": 1.0}
    # weights and products are rounded to bfloat16
    assert 0 < found[4]["bitsandbytes"]["error"] < 5e-3
    assert 0 < found[4]["bfloat16"]["error"] < 5e-3
    out = capsys.readouterr().out
    assert "bad, 4 rows of 96 x 128: RuntimeError: out of resource" in out


def test_failing_default_ends_it(matrices, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of resource")

    monkeypatch.setattr(matrices, "nf4_matmul", fail)
    matrix = matrices.Matrix(64, 64, 1, 1)
    with pytest.raises(RuntimeError, match="out of resource"):
        matrices.measure_matrix(matrix, (2,), {}, [matrices.make_copy(matrix, CPU)], step_clock)


def test_copies_fill_the_cache_twice(matrices):
    matrix = matrices.Matrix(64, 64, 1, 1)
    assert matrices.copies_for(matrix, 0) == 1
    assert matrices.copies_for(matrix, 2048) == 2
    assert matrices.copies_for(matrix, 2049) == 3


def test_a_pieces_tokens_see_what_is_before_them_in_a_longer_cache(operations):
    positions = torch.arange(5, 8)[None]
    query, key, value, mask = operations.draw_attention(positions, span=8, cached=16)
    assert query.shape == (1, operations.HEADS, 3, operations.WIDTH)
    assert key.shape == value.shape == (1, operations.KEY_HEADS, 8, operations.WIDTH)
    assert key.stride(1) == 16 * operations.WIDTH
    assert (mask == 0).sum(-1).tolist() == [[[6, 7, 8]]]


@torch.no_grad()
def test_attention_in_operations_is_that_of_float32(operations):
    def blank(query, *others):
        return torch.zeros_like(query)

    tensors = operations.draw_attention(torch.tensor([[3, 4, 5], [0, 1, 2]]), span=6, cached=8)
    row = operations.compare_attention(blank, tensors, step_clock)
    assert row["ours_error"] == 1.0
    assert 0 < row["theirs_error"] < 2e-2


@torch.no_grad()
def test_attention_to_keys_in_8_bits_is_compared_as_well(operations, monkeypatch):
    sizes = {"SEQUENCES": 2, "CACHED": 16, "SHORTEST": 9, "LONGEST": 12}
    for name, size in sizes.items():
        monkeypatch.setattr(operations, name, size)
    seen = []

    def blank(query, key, *others):
        seen.append(type(key).__name__)
        return torch.zeros_like(query)

    monkeypatch.setattr(operations, "decode_attention", blank)
    rows = operations.compare_decoding(CPU, step_clock)
    assert list(rows) == ["2 sequences", "2 sequences, int8"]
    assert set(seen) == {"Tensor", "Int8Vectors"}
    for row in rows.values():
        assert row["ours_error"] == 1.0
        assert 0 < row["theirs_error"] < 2e-2


@pytest.mark.parametrize(
    ("compare", "shape", "kernel"),
    [
        ("compare_norm", 3, "rms_norm"),
        ("compare_gate", 3, "gated"),
        ("compare_rotation", (2, 3), "rotate"),
    ],
)
@torch.no_grad()
def test_transformers_layers_are_those_of_float32(operations, compare, shape, kernel, monkeypatch):
    def blank(x, other, *rest):
        zeros = torch.zeros_like(x)
        return (zeros, torch.zeros_like(other)) if kernel == "rotate" else zeros

    monkeypatch.setattr(operations, kernel, blank)
    row = getattr(operations, compare)(shape, CPU, step_clock)
    assert row["ours_error"] == 1.0
    assert 0 < row["theirs_error"] < 1e-2


def test_grouped_attention_has_its_kernels_back(operations):
    attention = operations.attention
    before = attention.supports_decode, attention.supports_prefill
    with operations.without_kernels():
        assert not attention.supports_decode(None, None)
        assert not attention.supports_prefill(None, None)
    assert (attention.supports_decode, attention.supports_prefill) == before


@pytest.mark.gpu
@torch.no_grad()
def test_kernels_are_timed_on_a_gpu(bench, timing, matrices, operations, monkeypatch):
    device, clock = torch.device("cuda", 0), timing.graph_clock(4)
    matrix = matrices.Matrix(192, 256, 1, 1)
    copies = [matrices.make_copy(matrix, device) for _ in range(2)]
    cuts = {"64,3,4,3": Blocks(64, 3, 4, 3)}
    found = matrices.measure_matrix(matrix, (2, 40), cuts, copies, clock)
    monkeypatch.setattr(operations, "PIECES", ((40, 300),))
    monkeypatch.setattr(operations, "PIECE", (1, 40))
    rows = [figures for by_way in found.values() for figures in by_way.values()]
    assert len(rows) == 2 * 5
    assert all(row["us"] > 0 and row.get("error", 0) < 5e-3 for row in rows)
    compared = operations.compare_pieces(device, clock) | operations.compare_layers(device, clock)
    for row in compared.values():
        assert row["ours_us"] > 0
        assert row["theirs_us"] > 0
        assert row["ours_error"] < 2e-2
