"""Answers given together are those that transformers gives one by one."""

import copy
import random

import pytest
import torch
import transformers

from ja_instruct.engine.attention import use_grouped_attention
from ja_instruct.engine.engine import Engine
from ja_instruct.engine.kv_cache import KVCache, bytes_per_token, causal_mask
from ja_instruct.engine.sampler import Sampler
from ja_instruct.models.loading import load_nf4_model

NEW_TOKENS = 24
BAD_WORDS = [[400], [500, 501], [7, 8, 9]]
PENALTY = 1.1
COMMON = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def random_prompts(vocabulary, count=9, longest=90):
    chance = random.Random(0)
    return [
        [2, *(chance.randrange(300, vocabulary) for _ in range(chance.randint(3, longest)))]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def gemma2(tiny_nf4):
    return load_nf4_model(tiny_nf4, "cpu").eval()


@pytest.fixture(scope="module")
def others():
    """Small random models of other families, one with windows in most layers."""
    torch.manual_seed(0)
    return {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)).eval(),
        "gemma3": transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**COMMON, head_dim=16, sliding_window=16)
        ).eval(),
        "qwen3": transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**COMMON, head_dim=16)
        ).eval(),
    }


def forbidden_behind(answer, token):
    """A third of all pairs of neighbours may not be, nor a third of first tokens."""
    return ((answer[-1] if answer else 0) + token) % 3 == 0


class NoForbiddenPairs(transformers.LogitsProcessor):
    def __init__(self, prompt_tokens):
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids, scores):
        answer = input_ids[0, self.prompt_tokens :].tolist()
        banned = [token for token in range(scores.shape[1]) if forbidden_behind(answer, token)]
        scores = scores.clone()
        scores[:, banned] = -torch.inf
        return scores


def first_forbidden(ids, allowed):
    places = range(allowed, len(ids))
    return next((place for place in places if forbidden_behind(ids[:place], ids[place])), None)


def one_by_one(model, prompts, end, processors=lambda ids: [], cache=transformers.DynamicCache):
    answers = []
    for ids in prompts:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=PENALTY,
            bad_words_ids=BAD_WORDS,
            eos_token_id=end,
            pad_token_id=0,
            logits_processor=processors(ids),
            past_key_values=cache(),
        )
        answers.append(output[0, len(ids) :].tolist())
    return answers


def engine_of(model, end, **settings):
    settings = {"max_num_seqs": 4, "max_length": 200, **settings}
    sampler = Sampler(
        vocab_size=model.config.vocab_size,
        max_num_seqs=settings["max_num_seqs"],
        max_length=settings["max_length"],
        repetition_penalty=PENALTY,
        bad_words_ids=BAD_WORDS,
        penalized_prompt=True,
        exempt_ids=[],
        device=model.device,
    )
    return Engine(model, sampler, stop_ids=[end], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 4, "prefill_chunk_size": 32, "check_every": 5},
        {"max_num_seqs": 9, "prefill_chunk_size": 1000, "check_every": 16},
        {"max_num_seqs": 1, "prefill_chunk_size": 7, "check_every": 1},
    ],
    ids=str,
)
def test_gemma_2(gemma2, settings):
    prompts = random_prompts(gemma2.config.vocab_size)
    expected = one_by_one(gemma2, prompts, 1)
    answers = dict(engine_of(gemma2, 1, **settings).generate(prompts, NEW_TOKENS))
    assert [answers[position] for position in range(len(prompts))] == expected


@pytest.mark.parametrize("family", ["gemma2", "llama", "gemma3", "qwen3"])
@pytest.mark.parametrize(
    "settings", [{"max_num_seqs": 4, "prefill_chunk_size": 7}, {"max_num_seqs": 2}], ids=str
)
def test_int8_cache(gemma2, others, family, settings, benchmark_module):
    model = {**others, "gemma2": gemma2}[family]
    prompts = random_prompts(600, count=6, longest=60)
    exact = one_by_one(model, prompts, 1)
    rounded = benchmark_module("training.compare_adapters").RoundedCache
    expected = one_by_one(model, prompts, 1, cache=rounded)
    # else nothing would be seen of the rounding; this model hardly looks at what was before
    assert expected != exact or family == "gemma3"
    model = copy.deepcopy(model)
    use_grouped_attention(model)
    engine = engine_of(model, 1, **settings, int8_cache=True)
    answers = dict(engine.generate(prompts, NEW_TOKENS))
    assert [answers[position] for position in range(len(prompts))] == expected


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_other_families(others, family):
    model = others[family]
    prompts = random_prompts(600, count=6, longest=60)
    expected = one_by_one(model, prompts, 1)
    answers = dict(engine_of(model, 1, prefill_chunk_size=16).generate(prompts, NEW_TOKENS))
    assert [answers[position] for position in range(len(prompts))] == expected


def test_ended_answers_make_room(others):
    """An end token is chosen that some answers hold and others do not."""
    model = others["llama"]
    prompts = random_prompts(600, count=8, longest=40)
    free = one_by_one(model, prompts, 599)
    end = free[0][len(free[0]) // 2]
    expected = one_by_one(model, prompts, end)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 1
    answers = dict(
        engine_of(model, end, max_num_seqs=2, check_every=3).generate(prompts, NEW_TOKENS)
    )
    assert [answers[position] for position in range(len(prompts))] == expected


@pytest.mark.parametrize("check_every", [1, 5, 16])
def test_answers_are_rolled_back_to_banned_tokens(others, check_every):
    model = others["llama"]
    prompts = random_prompts(600, count=6, longest=40)
    free = one_by_one(model, prompts, 599)
    assert sum(first_forbidden(ids, 0) is not None for ids in free) == 6
    expected = one_by_one(model, prompts, 599, lambda ids: [NoForbiddenPairs(len(ids))])
    engine = engine_of(model, 599, max_num_seqs=3, check_every=check_every)
    answers = dict(engine.generate(prompts, NEW_TOKENS, first_forbidden))
    assert [answers[position] for position in range(6)] == expected


def test_answers_are_yielded_as_they_end(others):
    prompts = random_prompts(600, count=6, longest=40)
    engine = engine_of(others["llama"], 599, max_num_seqs=2, check_every=4)
    stream = engine.generate(prompts, NEW_TOKENS)
    first, _ = next(stream)
    # the longest prompts are answered first
    by_length = sorted(range(6), key=lambda position: -len(prompts[position]))
    assert first in by_length[:2]
    assert sorted([first, *(position for position, _ in stream)]) == list(range(6))


def test_row_without_a_prompt_attends_to_little(others, monkeypatch):
    prompts = [[2, *range(300, 340)], [2, *range(340, 390)]]
    ends = [len(prompts[0]) + 4, len(prompts[1]) + NEW_TOKENS]
    free = one_by_one(others["llama"], prompts, 599)
    end = free[0][4]
    assert end not in free[0][:4] + free[1]
    engine = engine_of(others["llama"], end, max_num_seqs=2, check_every=1)
    seen = []
    forward = engine._forward

    def watched(ids, positions, span):
        seen.append(positions[:, 0].tolist())
        return forward(ids, positions, span)

    monkeypatch.setattr(engine, "_forward", watched)
    assert [ids for _, ids in engine.generate(prompts, NEW_TOKENS)] == [free[0][:5], free[1]]
    steps = [places for places in seen if len(places) == 2]
    # the longer prompt is the first slot's
    assert max(places[1] for places in steps) == ends[0] - 1
    assert [places[1] for places in steps[4:]] == list(range(len(steps) - 4))
    assert steps[-1][0] == ends[1] - 2


def test_answer_ends_at_max_length(others):
    (ids,) = random_prompts(600, count=1, longest=40)
    engine = engine_of(others["llama"], 599, max_length=len(ids) + 5)
    assert [len(answer) for _, answer in engine.generate([ids], NEW_TOKENS)] == [5]


@pytest.mark.parametrize("ids", [[], [2] * 200])
def test_prompt_without_room_is_refused(others, ids):
    with pytest.raises(ValueError, match=r"prompt 1 has \d+ tokens: no room"):
        list(engine_of(others["llama"], 599).generate([[2, 300], ids], NEW_TOKENS))


def test_engine_can_be_used_again(others):
    prompts = random_prompts(600, count=5, longest=40)
    engine = engine_of(others["llama"], 599, max_num_seqs=2)
    first = dict(engine.generate(prompts, NEW_TOKENS))
    assert dict(engine.generate(prompts, NEW_TOKENS)) == first


def test_step_that_cannot_be_captured_is_launched(others, monkeypatch, caplog):
    prompts = random_prompts(600, count=5, longest=40)
    expected = one_by_one(others["llama"], prompts, 599)
    engine = engine_of(others["llama"], 599, max_num_seqs=2)
    tried = []

    def capture(span):
        tried.append(span)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine, "_use_cuda_graphs", True)
    monkeypatch.setattr(engine, "_capture", capture)
    answers = dict(engine.generate(prompts, NEW_TOKENS))
    assert [answers[position] for position in range(5)] == expected
    assert len(tried) == 1
    assert "operation not permitted when stream is capturing" in caplog.text


def test_running_out_of_memory_in_capture_is_an_error(others, monkeypatch):
    engine = engine_of(others["llama"], 599, max_num_seqs=2)

    def capture(span):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "_use_cuda_graphs", True)
    monkeypatch.setattr(engine, "_capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.generate([[2, 300]], NEW_TOKENS))


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [False, True])
def test_captured_steps_equal_launched_ones(others, int8):
    """On a GPU; TF32 is off by default, so numbers are those of float32."""
    model = copy.deepcopy(others["llama"]).cuda()
    use_grouped_attention(model)
    prompts = random_prompts(600, count=6, longest=60)
    taken, recorded = (
        dict(
            engine_of(model, 599, use_cuda_graphs=use, int8_cache=int8).generate(
                prompts, NEW_TOKENS
            )
        )
        for use in (False, True)
    )
    assert recorded == taken


@pytest.mark.gpu
@pytest.mark.parametrize("max_num_seqs", [1, 6])
def test_int8_cache_on_a_gpu(max_num_seqs):
    """With heads that the kernels take, whose answers are those of PyTorch's operations."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**COMMON, "hidden_size": 128}, head_dim=32)
    model = transformers.LlamaForCausalLM(config).eval()
    use_grouped_attention(model)
    prompts = random_prompts(600, count=6, longest=60)
    settings = {"max_num_seqs": max_num_seqs, "int8_cache": True, "prefill_chunk_size": 40}
    expected = dict(engine_of(model, 599, **settings).generate(prompts, NEW_TOKENS))
    answers = dict(engine_of(model.cuda(), 599, **settings).generate(prompts, NEW_TOKENS))
    equal = [answers[position] == ids for position, ids in expected.items()]
    # a number at the edge between two integers may go to either
    assert sum(equal) >= 5
    halved = dict(engine_of(model.half(), 599, **settings).generate(prompts, NEW_TOKENS))
    same = [
        sum(token == other for token, other in zip(halved[position], ids, strict=False))
        for position, ids in expected.items()
    ]
    assert sum(same) > 0.5 * sum(map(len, expected.values()))


def test_size_of_the_cache(gemma2):
    config = gemma2.config
    cache = KVCache(
        config, max_num_seqs=3, length=50, dtype=torch.float32, device=torch.device("cpu")
    )
    held = sum(tensor.nbytes for tensor in (*cache._keys, *cache._values))
    assert held == 3 * 50 * bytes_per_token(config, torch.float32)


def test_masks_of_windows(gemma2):
    positions = torch.tensor([[5], [90]])
    masks = causal_mask(gemma2.config, positions, 128, torch.float32)
    seen = {kind: (mask == 0).sum(dim=-1).flatten().tolist() for kind, mask in masks.items()}
    assert seen == {"full_attention": [6, 91], "sliding_attention": [6, 64]}
