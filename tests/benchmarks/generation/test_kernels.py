import argparse
import sys

import pytest
import torch

from ja_instruct.engine.kernels.nf4_matmul import Blocks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("generation.bench_generation_kernels")


def measured(bench, **ways):
    """Return the microseconds of ways for all matrices and 40 rows."""
    return {name: {40: {"arrange": 1.0, **ways}} for name in bench.MATRICES}


def call_all(calls):
    """Call everything once, as a clock does, and return a microsecond."""
    for call in calls:
        call()
    return 1.0


def test_block_sizes_are_parsed(bench):
    assert bench.parse_blocks("128,2,4,4,joined; 64,3,4,3;") == {
        "128,2,4,4,joined": Blocks(128, 2, 4, 4, joined=True),
        "64,3,4,3": Blocks(64, 3, 4, 3),
    }
    assert bench.parse_blocks("") == {}


@pytest.mark.parametrize(
    "text", ["128,2,4", "128,2,4,4,apart", "128,2,4,4,4", "128,2,-4,4", "joined"]
)
def test_invalid_block_sizes_are_named(bench, text):
    reason = f"'{text}': give OUTPUTS,PROGRAMS,WARPS,STAGES"
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        bench.parse_blocks(f"64,3,4,3;{text}")


def test_without_a_gpu_it_exits_with_the_reason(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_generation_kernels.py"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    # a text as the code is printed, and the exit status 1
    assert "no CUDA device is found" in stopped.value.code


def test_without_triton_it_names_triton(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ja_instruct.engine.kernels.triton.triton", None)
    assert "Triton" in bench.missing_requirement()


def test_sums_are_of_seven_matrices_and_four_arranged_inputs(bench):
    figures = measured(bench, ours=10.0, bitsandbytes=30.0, sizes=20.0, bfloat16=5.0)
    figures["down"][40]["ours"] = 12.0
    # only our kernel needs arranged rows
    assert bench.sum_layers(figures)[40] == {
        "ours": pytest.approx(46 * (6 * 10 + 12 + 4) / 1e3),
        "sizes": pytest.approx(46 * (7 * 20 + 4) / 1e3),
        "bitsandbytes": pytest.approx(46 * 7 * 30 / 1e3),
        "bfloat16": pytest.approx(46 * 7 * 5 / 1e3),
    }
    del figures["down"][40]["sizes"]
    assert "sizes" not in bench.sum_layers(figures)[40]


def fake_nf4_matmul(x, weight, *, arranged, blocks):
    """Fail for block sizes with 1 warp."""
    if blocks is not None and blocks.warps == 1:
        raise RuntimeError("out of resource")


def test_block_sizes_that_fail_are_left_out_and_reported(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "nf4_matmul", fake_nf4_matmul)
    matrix = bench.Matrix(96, 128, 1, 1)
    copies = [bench.make_copy(matrix, CPU) for _ in range(2)]
    blocks = {"bad": Blocks(64, 1, 1, 1), "good": Blocks(64, 1, 2, 1)}
    found = bench.measure_matrix((2, 4), blocks, copies, call_all)
    ways = ["arrange", "ours", "bitsandbytes", "bfloat16", "good"]
    assert found == {rows: dict.fromkeys(ways, 1.0) for rows in (2, 4)}
    assert "bad, 4 rows of (96, 128): RuntimeError: out of resource" in capsys.readouterr().out


def test_failure_of_the_default_ends_the_benchmark(bench, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of resource")

    monkeypatch.setattr(bench, "nf4_matmul", fail)
    matrix = bench.Matrix(64, 64, 1, 1)
    with pytest.raises(RuntimeError, match="out of resource"):
        bench.measure_matrix((2,), {}, [bench.make_copy(matrix, CPU)], call_all)


def test_copies_fill_the_cache_twice(bench):
    matrix = bench.Matrix(64, 64, 1, 1)
    assert [bench.copies_for(matrix, size) for size in (0, 2048, 2049)] == [1, 2, 3]


@pytest.mark.gpu
@torch.no_grad()
def test_matrices_are_timed_on_a_gpu(bench):
    device = torch.device("cuda", 0)
    copies = [bench.make_copy(bench.Matrix(192, 256, 1, 1), device) for _ in range(2)]
    blocks = {"64,3,4,3": Blocks(64, 3, 4, 3)}
    found = bench.measure_matrix((2, 40), blocks, copies, bench.graph_microseconds)
    assert [len(by_way) for by_way in found.values()] == [5, 5]
    assert all(us > 0 for by_way in found.values() for us in by_way.values())
