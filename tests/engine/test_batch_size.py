"""The arithmetic against what the engine allocates."""

import dataclasses

import pytest
import torch
from gemma_shapes import GEMMA_2_27B
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ja_instruct.engine.attention import SCORES_AT_ONCE
from ja_instruct.engine.batch_size import (
    ATTENTION_BYTES,
    USABLE_SHARE,
    EngineSizes,
    bytes_of_merging,
    free_bytes,
)
from ja_instruct.engine.kv_cache import KVCache
from ja_instruct.memory.estimates import ModelShape, lora_weights, nf4_bytes
from ja_instruct.models.directory import ModelDirectory

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def shape():
    return ModelShape.from_config(GEMMA_2_27B)


@pytest.fixture(scope="module")
def sizes(shape):
    return EngineSizes.of_shape(shape)


def test_attention_bytes_match_the_scores_computed_at_once():
    assert ATTENTION_BYTES == 2 * 4 * SCORES_AT_ONCE


@pytest.fixture(scope="module")
def in_4_bits(tiny_nf4):
    """The tiny 4-bit model, and the shape of its configuration."""
    model = tiny_nf4.load_model(device_map="cpu", dtype=torch.bfloat16)
    return model, ModelShape.from_config(tiny_nf4.load_config())


@pytest.mark.parametrize("int8", [False, True])
def test_cache_is_what_the_engine_allocates(tiny_gemma2, int8):
    model = tiny_gemma2.load_model()
    given = {"max_num_seqs": 3, "length": 50, "dtype": torch.float32, "device": torch.device("cpu")}
    cache = KVCache(model.config, **given, is_int8=int8)
    vectors = (*cache._keys, *cache._values)
    held = sum(one.nbytes for kept in vectors for one in (kept if int8 else [kept]))
    assert EngineSizes.of_model(model, int8_cache=int8).cache_bytes(3, 50) == held


@pytest.mark.parametrize("int8", [False, True])
def test_sizes_of_model_and_configuration_are_equal(in_4_bits, int8):
    model, shape = in_4_bits
    sizes = EngineSizes.of_model(model, int8_cache=int8)
    assert sizes == EngineSizes.of_shape(shape, int8_cache=int8)


@pytest.mark.parametrize(("free_gb", "expected"), [(6, 1024), (40, 2048), (66, 4096)])
def test_prefill_chunk_size_leaves_room_for_sequences(sizes, free_gb, expected):
    found = sizes.prefill_chunk_size(None, round(free_gb * 1e9), 4096)
    assert found == expected
    if expected > 1024:
        assert sizes.working_bytes(found, 4096) <= 0.05 * free_gb * 1e9
    assert sizes.prefill_chunk_size(700, round(free_gb * 1e9), 4096) == 700


@given(max_num_seqs=st.integers(0, 200), length=st.integers(1, 8000), prefill=st.integers(1, 4096))
def test_batch_size_matches_free_memory(max_num_seqs, length, prefill):
    sizes = EngineSizes.of_shape(ModelShape.from_config(GEMMA_2_27B))
    needed = sizes.working_bytes(prefill, length) + (max_num_seqs + 0.5) * sizes.sequence_bytes(
        length
    )
    assert sizes.max_num_seqs_that_fit(int(needed / USABLE_SHARE), prefill, length) == max_num_seqs


def test_nothing_fits_without_memory(sizes):
    for free in (0, -(10**9)):
        assert sizes.max_num_seqs_that_fit(free, 1024, 4096) == 0


def test_gemma_2_27b_on_cards_of_24_and_80_gb(shape, sizes):
    """Prompts and answers of 4,096 tokens, an adapter of r = 64 beside 4-bit weights."""
    beside = nf4_bytes(shape) + 2 * lora_weights(shape, SEVEN, 64)
    free = {gib: int(gib * 2**30 - 1e9) for gib in (24, 80)}
    small, large = (sizes.max_num_seqs_that_fit(one - beside, 1024, 4096) for one in free.values())
    assert small >= 3
    assert 32 <= large <= 45
    in_8_bits = EngineSizes.of_shape(shape, int8_cache=True)
    assert in_8_bits.max_num_seqs_that_fit(free[24] - beside, 1024, 4096) >= small + 3
    assert in_8_bits.max_num_seqs_that_fit(free[80] - beside, 1024, 4096) >= 1.9 * large
    in_16_bits = 2 * (shape.linear_weights + shape.other_weights)
    assert sizes.max_num_seqs_that_fit(free[80] - in_16_bits, 1024, 4096) < large


def test_larger_prefill_chunks_need_more_memory(sizes):
    assert sizes.working_bytes(4096, 8192) > sizes.working_bytes(1024, 8192)
    # but none is longer than the prompt
    assert sizes.working_bytes(4096, 512) == sizes.working_bytes(512, 512)


def test_merged_matrices_have_two_bytes_per_weight(in_4_bits):
    model, shape = in_4_bits
    grown, passing = bytes_of_merging(model, None)
    assert grown == shape.linear_weights * 2 - shape.linear_weights // 2
    assert passing == 0


def test_merging_needs_the_adapter_and_a_product_in_float32(in_4_bits, tmp_path):
    model, shape = in_4_bits
    factors = {"a": torch.zeros(4, 16), "b": torch.zeros(8, 4)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    _, passing = bytes_of_merging(model, ModelDirectory(tmp_path, "adapter"))
    assert passing == 4 * 96 + 2 * 4 * shape.largest_matrix


class TestFreeBytes:
    def test_cpu_has_a_share_of_its_memory(self):
        import psutil

        free = free_bytes(torch.device("cpu"), 0.001)
        assert 0 < free < 0.7 * psutil.virtual_memory().total

    @pytest.mark.parametrize(
        ("limit", "expected"), [(None, 52e9), (40.0, 30e9), (80.0, 52e9), (5.0, -5e9)]
    )
    def test_gpu_has_its_unused_memory(self, monkeypatch, limit, expected):
        figures = {
            "mem_get_info": (50_000_000_000, 80_000_000_000),
            "memory_allocated": 10_000_000_000,
            "memory_reserved": 12_000_000_000,
        }
        for name, value in figures.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        assert free_bytes(torch.device("cuda", 0), limit) == expected


def test_sequence_of_twice_the_length_has_twice_the_cache(sizes):
    one, two = sizes.sequence_bytes(1000), sizes.sequence_bytes(2000)
    assert two - one > sizes.cache_bytes(1, 1000)
    assert dataclasses.replace(sizes, cache_token_bytes=0).sequence_bytes(1000) < 0.2 * one
