"""Token counts against one text at a time, and the bounds on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from ja_instruct.pipelines.data_filtering import token_lengths
from ja_instruct.pipelines.data_filtering.token_lengths import (
    TokenViolation,
    find_token_count,
    measure_token_counts,
)


def make_tokenizer() -> Tokenizer:
    """One token for each run of kana and each other character, and a BOS before them."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<bos>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ぁ-ゖ]+|[^ぁ-ゖ]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


@given(st.lists(st.text("東京はです。\n𠮷", max_size=12), max_size=8))
def test_counts_are_those_of_one_text_at_a_time(texts: list[str]) -> None:
    tokenizer = make_tokenizer()
    expected = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert measure_token_counts(texts, tokenizer).tolist() == expected


def test_a_corpus_of_several_batches_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_lengths, "BATCH_TEXTS", 3)
    texts = ["東" * count for count in range(11)]
    assert measure_token_counts(texts, make_tokenizer()).tolist() == list(range(11))


def test_truncation_and_padding_change_no_count_and_stay() -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert measure_token_counts(["東京都心", "東"], tokenizer).tolist() == [4, 1]
    assert len(tokenizer.encode("東京都心").ids) == 8
    assert tokenizer.truncation["max_length"] == 2


@pytest.mark.parametrize(
    ("instruction_tokens", "response_tokens", "violation"),
    [
        (10, 3, None),
        (10, 2, TokenViolation("response", "2 < 3")),
        (17, 3, None),
        (10, 10, None),
        (18, 3, TokenViolation("instruction", "18 + 3 > 20")),
        (10, 11, TokenViolation("response", "10 + 11 > 20")),
        (30, 0, TokenViolation("response", "0 < 3")),
    ],
)
def test_bounds_may_be_met_exactly(
    instruction_tokens: int, response_tokens: int, violation: TokenViolation | None
) -> None:
    bounds = {"response_tokens_min": 3, "pair_tokens_max": 20}
    assert find_token_count(instruction_tokens, response_tokens, **bounds) == violation
