"""Answers given together are those that transformers gives one by one."""

import copy
import operator
import random
from unittest.mock import Mock

import pytest
import torch
import transformers
from random_models import random_model

from ja_instruct.engine.attention import use_grouped_attention
from ja_instruct.engine.engine import Engine
from ja_instruct.engine.kv_cache import causal_mask
from ja_instruct.engine.sampler import Sampler
from ja_instruct.models.loading import load_nf4_model

NEW_TOKENS = 24
BAD_WORDS = [[400], [500, 501], [7, 8, 9]]
PENALTY = 1.1


def random_prompts(count=6, longest=60, vocabulary=600):
    chance = random.Random(0)
    return [
        [2, *(chance.randrange(300, vocabulary) for _ in range(chance.randint(3, longest)))]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def models(tiny_nf4):
    """A model of each family; Gemma 3 has windows in most layers."""
    return {
        "gemma2": load_nf4_model(tiny_nf4, "cpu").eval(),
        "gemma3": random_model("gemma3", sliding_window=16),
        **{family: random_model(family) for family in ("llama", "qwen3")},
    }


@pytest.fixture(scope="module")
def llama(models):
    return models["llama"]


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


def answers_of(engine, prompts, *find_banned):
    """The answers in the order of the prompts, each given once."""
    answers = list(engine.generate(prompts, NEW_TOKENS, *find_banned))
    assert sorted(position for position, _ in answers) == list(range(len(prompts)))
    return [dict(answers)[position] for position in range(len(prompts))]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"max_num_seqs": 4, "prefill_chunk_size": 32, "check_every": 5}),
        ("gemma2", {"max_num_seqs": 9, "prefill_chunk_size": 1000, "check_every": 16}),
        ("gemma2", {"max_num_seqs": 1, "prefill_chunk_size": 7, "check_every": 1}),
        *((family, {"prefill_chunk_size": 16}) for family in ("llama", "gemma3", "qwen3")),
    ],
    ids=str,
)
def test_answers_equal_those_of_transformers(models, family, settings):
    model = models[family]
    prompts = random_prompts(9, 90, model.config.vocab_size)
    expected = one_by_one(model, prompts, 1)
    assert answers_of(engine_of(model, 1, **settings), prompts) == expected


@pytest.mark.parametrize("family", ["gemma2", "llama", "gemma3", "qwen3"])
@pytest.mark.parametrize(
    "settings", [{"max_num_seqs": 4, "prefill_chunk_size": 7}, {"max_num_seqs": 2}], ids=str
)
def test_int8_cache(models, family, settings, benchmark_module):
    model = models[family]
    prompts = random_prompts(12)
    exact = one_by_one(model, prompts, 1)
    rounded = benchmark_module("training.compare_adapters").RoundedCache
    expected = one_by_one(model, prompts, 1, cache=rounded)
    # else nothing would be seen of the rounding; this model hardly looks at what was before
    assert expected != exact or family == "gemma3"
    model = copy.deepcopy(model)
    use_grouped_attention(model)
    engine = engine_of(model, 1, **settings, int8_cache=True)
    assert answers_of(engine, prompts) == expected


def test_ended_answers_make_room(llama):
    """An end token is chosen that some answers contain and others do not."""
    prompts = random_prompts(8, 40)
    free = one_by_one(llama, prompts, 599)
    end = free[0][len(free[0]) // 2]
    expected = one_by_one(llama, prompts, end)
    assert len({len(answer) for answer in expected}) > 1
    engine = engine_of(llama, end, max_num_seqs=2, check_every=3)
    assert answers_of(engine, prompts) == expected


@pytest.mark.parametrize("check_every", [1, 5, 16])
def test_answers_are_rolled_back_to_banned_tokens(llama, check_every):
    prompts = random_prompts(6, 40)
    free = one_by_one(llama, prompts, 599)
    assert sum(first_forbidden(ids, 0) is not None for ids in free) == 6
    expected = one_by_one(llama, prompts, 599, lambda ids: [NoForbiddenPairs(len(ids))])
    engine = engine_of(llama, 599, max_num_seqs=3, check_every=check_every)
    assert answers_of(engine, prompts, first_forbidden) == expected


def test_answers_are_yielded_as_they_end(llama):
    prompts = random_prompts(6, 40)
    engine = engine_of(llama, 599, max_num_seqs=2, check_every=4)
    stream = engine.generate(prompts, NEW_TOKENS)
    first, _ = next(stream)
    # the longest prompts are answered first
    by_length = sorted(range(6), key=lambda position: -len(prompts[position]))
    assert first in by_length[:2]
    assert sorted([first, *(position for position, _ in stream)]) == list(range(6))


def test_row_without_a_prompt_attends_to_little(llama, monkeypatch):
    prompts = [[2, *range(300, 340)], [2, *range(340, 390)]]
    ends = [len(prompts[0]) + 4, len(prompts[1]) + NEW_TOKENS]
    free = one_by_one(llama, prompts, 599)
    end = free[0][4]
    assert end not in free[0][:4] + free[1]
    engine = engine_of(llama, end, max_num_seqs=2, check_every=1)
    seen = []
    forward = engine._forward

    def watched(ids, positions, span):
        seen.append(positions[:, 0].tolist())
        return forward(ids, positions, span)

    monkeypatch.setattr(engine, "_forward", watched)
    assert [ids for _, ids in engine.generate(prompts, NEW_TOKENS)] == [free[0][:5], free[1]]
    steps = [places for places in seen if len(places) == 2]
    # the longer prompt is in the first row
    assert max(places[1] for places in steps) == ends[0] - 1
    assert [places[1] for places in steps[4:]] == list(range(len(steps) - 4))
    assert steps[-1][0] == ends[1] - 2


def test_answer_ends_at_max_length(llama):
    (ids,) = random_prompts(1, 40)
    engine = engine_of(llama, 599, max_length=len(ids) + 5)
    assert [len(answer) for _, answer in engine.generate([ids], NEW_TOKENS)] == [5]


@pytest.mark.parametrize("ids", [[], [2] * 200])
def test_prompt_without_room_is_refused(llama, ids):
    with pytest.raises(ValueError, match=r"prompt 1 has \d+ tokens: no room"):
        list(engine_of(llama, 599).generate([[2, 300], ids], NEW_TOKENS))


def test_engine_can_be_used_again(llama):
    prompts = random_prompts(5, 40)
    engine = engine_of(llama, 599, max_num_seqs=2)
    assert answers_of(engine, prompts) == answers_of(engine, prompts)


@pytest.fixture
def failing_capture(llama, monkeypatch):
    """An engine whose steps cannot be captured, and a mock of the attempts."""
    engine, capture = engine_of(llama, 599, max_num_seqs=2), Mock()
    monkeypatch.setattr(engine, "_use_cuda_graphs", True)
    monkeypatch.setattr(engine, "_capture", capture)
    return engine, capture


def test_step_that_cannot_be_captured_is_launched(llama, failing_capture, caplog):
    prompts = random_prompts(5, 40)
    engine, capture = failing_capture
    capture.side_effect = RuntimeError("operation not permitted when stream is capturing")
    assert answers_of(engine, prompts) == one_by_one(llama, prompts, 599)
    assert capture.call_count == 1
    assert "operation not permitted when stream is capturing" in caplog.text


def test_running_out_of_memory_in_capture_is_an_error(failing_capture):
    engine, capture = failing_capture
    capture.side_effect = torch.OutOfMemoryError
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.generate([[2, 300]], NEW_TOKENS))


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [False, True])
def test_captured_steps_equal_launched_ones(llama, int8):
    """On a GPU; TF32 is off by default, so numbers are those of float32."""
    model = copy.deepcopy(llama).cuda()
    use_grouped_attention(model)
    launched, captured = (
        answers_of(engine_of(model, 599, use_cuda_graphs=use, int8_cache=int8), random_prompts())
        for use in (False, True)
    )
    assert captured == launched


@pytest.mark.gpu
@pytest.mark.parametrize("max_num_seqs", [1, 6])
def test_int8_cache_on_a_gpu(max_num_seqs):
    """With heads that the kernels support, whose answers are those of PyTorch's operations."""
    model = random_model("llama", hidden_size=128, head_dim=32)
    use_grouped_attention(model)
    settings = {"max_num_seqs": max_num_seqs, "int8_cache": True, "prefill_chunk_size": 40}
    expected, answers, halved = (
        answers_of(engine_of(change(model), 599, **settings), random_prompts())
        for change in (lambda model: model, lambda model: model.cuda(), lambda model: model.half())
    )
    # a number at the edge between two integers may be rounded to either
    assert sum(map(operator.eq, answers, expected)) >= 5
    same = [sum(map(operator.eq, *both)) for both in zip(halved, expected, strict=True)]
    assert sum(same) > 0.5 * sum(map(len, expected))


def test_masks_of_windows(models):
    positions = torch.tensor([[5], [90]])
    masks = causal_mask(models["gemma2"].config, positions, 128, torch.float32)
    seen = {kind: (mask == 0).sum(dim=-1).flatten().tolist() for kind, mask in masks.items()}
    assert seen == {"full_attention": [6, 91], "sliding_attention": [6, 64]}
