"""The rules against transformers' own processors, sequence by sequence."""

import pytest
import torch
from transformers.generation.logits_process import (
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from ja_instruct.engine.sampler import MAX_REFUSED, Sampler

VOCABULARY = 12
CPU = torch.device("cpu")


def rules_of(**changes):
    settings = {
        "vocab_size": VOCABULARY,
        "max_num_seqs": 3,
        "max_length": 50,
        "repetition_penalty": 1.0,
        "bad_words_ids": [],
        "penalized_prompt": True,
        "exempt_ids": [],
        "device": CPU,
    }
    return Sampler(**{**settings, **changes})


@pytest.mark.parametrize("penalty", [1.0, 1.1, 3.0])
@pytest.mark.parametrize("bad_words", [[], [[3]], [[3], [4, 5], [6, 7, 8], [1, 5]]], ids=str)
def test_choices_equal_transformers(penalty, bad_words):
    generator = torch.Generator().manual_seed(1)
    rules = rules_of(repetition_penalty=penalty, bad_words_ids=bad_words)
    texts = [[2, 4], [6, 7], [9]]
    for slot, ids in enumerate(texts):
        rules.start(slot, ids)
    processors = [RepetitionPenaltyLogitsProcessor(penalty)]
    if bad_words:
        processors.append(NoBadWordsLogitsProcessor(bad_words, eos_token_id=0))
    for _ in range(40):
        logits = torch.randn(3, VOCABULARY, generator=generator) * 3
        expected = []
        for ids, row in zip(texts, logits, strict=True):
            scores = row[None].clone()
            for processor in processors:
                scores = processor(torch.tensor([ids]), scores)
            expected.append(int(scores.argmax()))
            ids.append(expected[-1])
        assert rules.choose(logits.clone(), slice(0, 3)).tolist() == expected


@pytest.mark.parametrize(
    ("changes", "prompt", "expected"),
    [
        ({}, [0], [6]),
        # at first nothing is penalized, also not the token that fills empty places
        ({"penalized_prompt": False}, [0, 6], [0, 6]),
        ({"exempt_ids": [0]}, [0], [0, 0]),
    ],
    ids=str,
)
def test_penalized_tokens(changes, prompt, expected):
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 0], logits[0, 6] = 2.0, 1.9
    rules = rules_of(max_num_seqs=1, repetition_penalty=1.5, **changes)
    rules.start(0, prompt)
    assert [int(rules.choose(logits.clone(), slice(0, 1))) for _ in expected] == expected


def test_steps_beyond_the_end_of_a_row_are_harmless():
    rules = rules_of(max_num_seqs=2, max_length=4, repetition_penalty=1.5)
    rules.start(0, [1, 2])
    rules.start(1, [3])
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    chosen = [rules.choose(logits.clone(), slice(0, 2)).tolist() for _ in range(9)]
    assert all(0 <= token < VOCABULARY for tokens in chosen for token in tokens)


def test_too_many_refused_tokens_are_an_error():
    rules = rules_of()
    rules.start(1, [1], [4], list(range(MAX_REFUSED)))
    with pytest.raises(RuntimeError, match="1025 tokens are banned after 1 tokens of an answer"):
        rules.start(1, [1], [4], list(range(MAX_REFUSED + 1)))


def test_start_resets_a_row():
    rules = rules_of(max_num_seqs=2, bad_words_ids=[[4, 5]], repetition_penalty=9.0)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 5], logits[0, 6] = 2.0, 1.0
    rules.start(1, [5, 4])
    assert rules.choose(logits.clone(), slice(1, 2)).tolist() == [6]
    rules.start(1, [3])
    assert rules.choose(logits.clone(), slice(1, 2)).tolist() == [5]


def test_state_can_be_restored():
    rules = rules_of(repetition_penalty=2.0)
    for slot in range(3):
        rules.start(slot, [slot])
    state = rules.state()
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    first = rules.choose(logits.clone(), slice(0, 3))
    rules.restore(state)
    assert rules.choose(logits.clone(), slice(0, 3)).equal(first)


def test_answer_so_far_counts_as_seen():
    """A slot that begins within an answer chooses as one that came there by itself."""
    settings = {"max_num_seqs": 1, "bad_words_ids": [[4, 5], [6, 7, 8]], "repetition_penalty": 2.0}
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(1, VOCABULARY, generator=generator) * 3 for _ in range(12)]
    for on_prompt in (True, False):
        straight = rules_of(**settings, penalized_prompt=on_prompt)
        straight.start(0, [2, 4])
        chosen = [int(straight.choose(row.clone(), slice(0, 1))) for row in rows]
        for begun in range(len(rows)):
            again = rules_of(**settings, penalized_prompt=on_prompt)
            again.start(0, [2, 4], chosen[:begun])
            rest = [int(again.choose(row.clone(), slice(0, 1))) for row in rows[begun:]]
            assert rest == chosen[begun:]


def test_refused_tokens_are_refused_once():
    rules = rules_of(max_num_seqs=2)
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 5], logits[:, 6], logits[:, 7] = 3.0, 2.0, 1.0
    rules.start(0, [1])
    rules.start(1, [1], refused=[5, 6])
    assert rules.choose(logits.clone(), slice(0, 2)).tolist() == [5, 7]
    assert rules.choose(logits.clone(), slice(0, 2)).tolist() == [5, 5]
