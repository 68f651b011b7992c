import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.sft.micro_batches import (
    collate_step,
    group_by_length,
    packed,
    padded,
    split_rows,
    target_count,
)
from ja_instruct.pipelines.sft.samples import IGNORED_LABEL

PAD = 7
lengths = st.lists(st.integers(1, 40), max_size=30)
budgets = st.integers(1, 60)


def sample(*ids, answer_from=0):
    labels = [IGNORED_LABEL] * answer_from + list(ids[answer_from:])
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


@given(lengths, budgets, st.booleans())
def test_groups(lengths, budget, packing):
    groups = group_by_length(lengths, budget, packing=packing)
    # every sample is in one group
    assert all(groups)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[position] for position in group]
        assert inside == sorted(inside, reverse=True)
        # only a single sample exceeds the budget
        computed = sum(inside) if packing else len(inside) * max(inside)
        assert computed <= budget or len(group) == 1
    # the longest come first, so a step that does not fit fails with its first group
    longest = [lengths[group[0]] for group in groups]
    assert longest == sorted(longest, reverse=True)


@given(lengths, budgets)
def test_packing_never_needs_more_batches(lengths, budget):
    together = group_by_length(lengths, budget, packing=True)
    assert len(together) <= len(group_by_length(lengths, budget, packing=False))


@given(lengths, budgets)
def test_no_two_rows_would_fit_into_one(lengths, budget):
    rows = group_by_length(lengths, budget, packing=True)
    tokens = [sum(lengths[position] for position in row) for row in rows]
    for one in range(len(rows)):
        for other in range(one):
            assert tokens[one] + tokens[other] > budget


def test_collator_keeps_samples_apart_and_counts_no_first_token():
    batch = collate_step(
        [{"input_ids": [2, 3, 4], "labels": [2, 3, 4]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    )
    assert [one["input_ids"].tolist() for one in batch["samples"]] == [[2, 3, 4], [5, 6]]
    assert [one["labels"].tolist() for one in batch["samples"]] == [[2, 3, 4], [-100, 6]]
    assert batch["labels"].tolist() == [[-100, 3, 4, -100, 6]]
    assert target_count(batch) == 3


def test_padded_batch():
    batch = padded([sample(2, 3, 4, answer_from=1), sample(5)], PAD)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[2, 3, 4], [5, PAD, PAD]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 3, 4], [5, -100, -100]],
    }


def test_packed_row():
    row = packed([sample(2, 3, 4, answer_from=1), sample(5, 6)], PAD)
    assert {key: value.tolist() for key, value in row.items()} == {
        "input_ids": [[2, 3, 4, 5, 6]],
        # no sample's first token is predicted from the end of the one before it
        "labels": [[-100, 3, 4, -100, 6]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "packed_seq_lengths": [3, 2],
    }
    assert row["packed_seq_lengths"].dtype == torch.int32


def test_packed_row_filled_up():
    row = packed([sample(2, 3, 4), sample(5, 6)], PAD, multiple_of=4)
    assert {key: value.tolist() for key, value in row.items()} == {
        "input_ids": [[2, 3, 4, 5, 6, PAD, PAD, PAD]],
        "labels": [[-100, 3, 4, -100, 6, -100, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]],
        "packed_seq_lengths": [3, 2, 3],
    }
    full = packed([sample(2, 3, 4, 5)], PAD, multiple_of=4)
    assert full["packed_seq_lengths"].tolist() == [4]
    assert full["input_ids"].shape == (1, 4)


tokens = st.lists(st.integers(10, 99), min_size=1, max_size=12)


@given(st.lists(tokens, min_size=1, max_size=6), st.integers(1, 8), st.data())
def test_every_arrangement_has_the_same_targets(texts, multiple_of, data):
    starts = [data.draw(st.integers(0, len(text))) for text in texts]
    samples = [sample(*ids, answer_from=at) for ids, at in zip(texts, starts, strict=True)]
    expected = sum(len(ids) - max(at, 1) for ids, at in zip(texts, starts, strict=True))
    rows = [{key: value.tolist() for key, value in one.items()} for one in samples]
    assert target_count(collate_step(rows)) == expected
    assert target_count(padded(samples, PAD)) == expected
    row = packed(samples, PAD, multiple_of=multiple_of)
    assert target_count(row) == expected
    assert row["input_ids"].numel() % multiple_of == 0


@given(st.lists(tokens, min_size=1, max_size=7), st.integers(1, 8))
def test_parts_of_a_padded_batch_lose_nothing_but_padding(texts, rows):
    samples = [sample(*ids, answer_from=len(ids) // 2) for ids in texts]
    parts = split_rows(padded(samples, PAD), rows)
    for start, part in zip(range(0, len(samples), rows), parts, strict=True):
        expected = padded(samples[start : start + rows], PAD)
        assert part.keys() == expected.keys()
        for key in part:
            assert part[key].equal(expected[key])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_rows_stay_on_their_device_except_for_the_lengths(device):
    samples = [{key: one.to(device) for key, one in sample(2, 3, 4).items()} for _ in range(2)]
    row = packed(samples, PAD, multiple_of=8)
    assert {key: value.device.type for key, value in row.items()} == {
        "input_ids": device,
        "labels": device,
        "position_ids": device,
        "packed_seq_lengths": "cpu",
    }


def test_parts_between_answers_stay_out_of_the_loss():
    """A conversation has several answers in one sample."""
    labels = [-100, 3, -100, 5, 6]
    talk = {"input_ids": torch.tensor([2, 3, 4, 5, 6]), "labels": torch.tensor(labels)}
    batch = collate_step([talk, sample(2, 8, 9, answer_from=1)])
    assert target_count(batch) == 5
    in_rows = padded(batch["samples"], PAD)
    assert in_rows["labels"].tolist() == [labels, [-100, 8, 9, -100, -100]]
    in_one = packed(batch["samples"], PAD)
    assert in_one["labels"].tolist() == [[*labels, -100, 8, 9]]
    assert target_count(in_rows) == target_count(in_one) == 5
