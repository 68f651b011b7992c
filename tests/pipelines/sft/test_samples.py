import pytest
from datasets import Dataset

from ja_instruct.pipelines.sft.samples import encode_dataset, encode_sample, to_samples
from ja_instruct.prompts import PromptParameters, training_prompt

LONG = 10_000
QUESTION = "日本の首都はどこですか。"
ANSWER = "東京です。\n\n1. 日本の首都は東京です。"


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma2):
    return tiny_gemma2.load_tokenizer()


@pytest.fixture(scope="module")
def prompts(read_parameters):
    return PromptParameters(**read_parameters("base")["prompts"])


@pytest.fixture(scope="module")
def sample(prompts):
    return to_samples([(QUESTION, ANSWER)], prompts, "qa_pairs")[0]


def split(row):
    """The ids that the loss leaves out, which come first, and those that it counts."""
    counted = [label != -100 for label in row["labels"]]
    start = counted.index(True) if any(counted) else len(counted)
    assert not any(counted[:start])
    assert all(counted[start:])
    assert row["labels"][start:] == row["input_ids"][start:]
    return row["input_ids"][:start], row["input_ids"][start:]


def test_to_samples(prompts):
    pairs = [(QUESTION, ANSWER), ("二", "")]
    assert to_samples(pairs, prompts, "filtered_pairs") == [
        {
            "prompt": training_prompt(prompts, QUESTION),
            "completion": ANSWER,
            "source": "filtered_pairs",
        },
        {"prompt": training_prompt(prompts, "二"), "completion": "", "source": "filtered_pairs"},
    ]


def test_text_is_the_recipes(sample, prompts, tokenizer):
    row = encode_sample(sample, tokenizer, LONG, answer_only_loss=False)
    text = prompts.train_prompt.format(QUESTION, ANSWER)
    assert tokenizer.decode(row["input_ids"]) == f"<bos>{text}<eos>"
    assert row["labels"] == row["input_ids"]


def test_one_bos_and_one_eos(sample, tokenizer):
    ids = encode_sample(sample, tokenizer, LONG, answer_only_loss=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("answer_only_loss", [False, True])
def test_empty_answer_gets_no_eos(prompts, tokenizer, answer_only_loss):
    (sample,) = to_samples([(QUESTION, "")], prompts, "qa_pairs")
    ids = encode_sample(sample, tokenizer, LONG, answer_only_loss)["input_ids"]
    assert ids == tokenizer(sample["prompt"])["input_ids"]
    assert tokenizer.eos_token_id not in ids


def test_answer_only_loss_leaves_out_exactly_the_prompt(sample, tokenizer):
    row = encode_sample(sample, tokenizer, LONG, answer_only_loss=True)
    left_out, counted = split(row)
    assert left_out == tokenizer(sample["prompt"])["input_ids"]
    assert tokenizer.decode(counted) == f"{ANSWER}<eos>"
    whole = encode_sample(sample, tokenizer, LONG, answer_only_loss=False)
    assert row["input_ids"] == whole["input_ids"]


def test_answer_that_melts_into_the_prompt_is_learned_whole(prompts, tokenizer):
    # the prompt ends with a line break: with this answer the tokenizer makes one token of both
    (sample,) = to_samples([(QUESTION, "\n東京です。")], prompts, "qa_pairs")
    row = encode_sample(sample, tokenizer, LONG, answer_only_loss=True)
    left_out, counted = split(row)
    assert tokenizer.decode(counted) == "\n\n東京です。<eos>"
    assert left_out == tokenizer(sample["prompt"])["input_ids"][: len(left_out)]


@pytest.mark.parametrize("answer_only_loss", [False, True])
def test_long_sample_is_cut_at_its_end(sample, tokenizer, answer_only_loss):
    whole = encode_sample(sample, tokenizer, LONG, answer_only_loss)
    length = len(whole["input_ids"]) - 3
    cut = encode_sample(sample, tokenizer, length, answer_only_loss)
    assert cut == {key: values[:length] for key, values in whole.items()}


def test_samples_without_anything_to_learn_are_dropped_and_counted(prompts, tokenizer):
    pairs = [(QUESTION, ANSWER), (QUESTION * 50, ANSWER), (QUESTION, "")]
    samples = Dataset.from_list(to_samples(pairs, prompts, "qa_pairs"))
    room = len(encode_sample(samples[0], tokenizer, LONG, answer_only_loss=True)["input_ids"]) + 1
    encoded, counts = encode_dataset(samples, tokenizer, room, answer_only_loss=True)
    expected = encode_sample(samples[0], tokenizer, room, answer_only_loss=True)
    assert encoded.to_list() == [expected]
    answer_tokens = len(split(expected)[1])
    assert counts == {
        "samples": 1,
        "tokens": room - 1,
        "loss_tokens": answer_tokens,
        "at_max_seq_length": 1,
        "dropped": 2,
    }


def test_nothing_is_dropped_when_questions_count(prompts, tokenizer):
    pairs = [(QUESTION * 50, ANSWER), (QUESTION, "")]
    samples = Dataset.from_list(to_samples(pairs, prompts, "qa_pairs"))
    encoded, counts = encode_dataset(samples, tokenizer, 30, answer_only_loss=False)
    assert [len(ids) for ids in encoded["input_ids"]] == [30, 30]
    assert (counts["dropped"], counts["at_max_seq_length"]) == (0, 2)
    assert counts["tokens"] == counts["loss_tokens"] == 60


def test_no_samples(tokenizer):
    encoded, counts = encode_dataset(Dataset.from_list([]), tokenizer, LONG, answer_only_loss=True)
    assert len(encoded) == 0
    assert set(counts.values()) == {0}
