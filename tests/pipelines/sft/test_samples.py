import random
from itertools import groupby

import pytest
from datasets import Dataset

from ja_instruct.control_tokens import ControlTokens, unmark
from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft import samples as samples_module
from ja_instruct.pipelines.sft.samples import encode_dataset
from ja_instruct.prompts import PromptBuilder, training_prompt

LONG = 10_000
QUESTION = "日本の首都はどこですか。"
ANSWER = "東京です。\n\n1. 日本の首都は東京です。"
FORMATS = {"recipe": "", "training_prompt": "", "chat_template": "<end_of_turn>\n"}


@pytest.fixture(scope="module")
def tokenizer(tiny_nf4):
    return tiny_nf4.load_tokenizer()


def to_samples(pairs, prompts, tokenizer):
    rows = [(question, answer, ()) for question, answer in pairs]
    return samples_module.to_samples(rows, PromptBuilder(prompts, tokenizer), "qa_pairs")


@pytest.fixture(scope="module")
def sample(prompts, tokenizer):
    return to_samples([(QUESTION, ANSWER)], prompts, tokenizer)[0]


def encode_sample(sample, tokenizer, max_seq_length, completion_only_loss):
    """The reference of ``encode_dataset``, for one sample."""
    text = sample["prompt"] + sample["completion"]
    if sample["completion"]:
        text += tokenizer.eos_token
    control = ControlTokens(tokenizer)
    (input_ids,) = control.encode([text])
    labels = list(input_ids)
    if completion_only_loss:
        for position, token in enumerate(*control.encode([sample["prompt"]])):
            if token != input_ids[position]:
                break
            labels[position] = -100
    return {"input_ids": input_ids[:max_seq_length], "labels": labels[:max_seq_length]}


@pytest.fixture(scope="module")
def encode(tokenizer):
    """A function that encodes one sample by ``encode_dataset``."""

    def call(sample, *, completion_only_loss):
        samples = Dataset.from_list([sample])
        encoded, _ = encode_dataset(samples, tokenizer, LONG, completion_only_loss)
        return encoded[0]

    return call


def split(row):
    """Return the ids before the loss and those in it."""
    counted = [label != -100 for label in row["labels"]]
    start = counted.index(True) if any(counted) else len(counted)
    assert not any(counted[:start])
    assert all(counted[start:])
    assert row["labels"][start:] == row["input_ids"][start:]
    return row["input_ids"][:start], row["input_ids"][start:]


@pytest.mark.parametrize(("name", "end"), FORMATS.items())
def test_to_samples(prompts, tokenizer, name, end):
    prompts = prompts.model_copy(update={"format": name})
    prompt = PromptBuilder(prompts, tokenizer).prompt(QUESTION, [])
    if name == "recipe":
        prompt = training_prompt(prompts, QUESTION)
    assert to_samples([(QUESTION, ANSWER), (QUESTION, "")], prompts, tokenizer) == [
        {"prompt": prompt, "completion": ANSWER + end, "source": "qa_pairs"},
        {"prompt": prompt, "completion": "", "source": "qa_pairs"},
    ]


def test_text_is_the_recipes(sample, prompts, tokenizer, encode):
    row = encode(sample, completion_only_loss=False)
    text = prompts.train_prompt.format(QUESTION, ANSWER)
    assert tokenizer.decode(row["input_ids"]) == f"<bos>{text}<eos>"
    assert row["labels"] == row["input_ids"]


@pytest.mark.parametrize(("name", "end"), FORMATS.items())
def test_every_format(prompts, tokenizer, encode, name, end):
    prompts = prompts.model_copy(update={"format": name})
    pairs = [(QUESTION, ANSWER), (QUESTION, "")]
    sample, unanswered = to_samples(pairs, prompts, tokenizer)
    # one BOS and one EOS
    ids = encode(sample, completion_only_loss=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    # an empty answer gets no EOS
    prompt_ids = tokenizer(sample["prompt"])["input_ids"]
    assert encode(unanswered, completion_only_loss=False)["input_ids"] == prompt_ids
    assert tokenizer.eos_token_id not in prompt_ids
    # without the prompt in the loss, exactly the answer is
    row = encode(sample, completion_only_loss=True)
    left_out, counted = split(row)
    assert left_out == prompt_ids
    assert tokenizer.decode(counted) == f"{ANSWER}{end}<eos>"
    # and that is how a generated answer is read
    assert tokenizer.decode(counted, skip_special_tokens=True).strip() == ANSWER
    assert row["input_ids"] == ids


def test_token_of_both_prompt_and_answer_is_in_the_loss(prompts, tokenizer, encode):
    # the prompt ends with a line break: with this answer the tokenizer makes one token of both
    (sample,) = to_samples([(QUESTION, "\n東京です。")], prompts, tokenizer)
    left_out, counted = split(encode(sample, completion_only_loss=True))
    assert tokenizer.decode(counted) == "\n\n東京です。<eos>"
    assert left_out == tokenizer(sample["prompt"])["input_ids"][: len(left_out)]


HISTORY = [
    {"role": "system", "content": "短く答えなさい。"},
    {"role": "user", "content": "質問です。東京です。"},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "<eos>は何ですか。"},
    {"role": "assistant", "content": "<eos>は文の終わりです。"},
]


class TestConversation:
    @pytest.fixture(params=FORMATS)
    def sample(self, request, prompts, tokenizer):
        builder = PromptBuilder(prompts.model_copy(update={"format": request.param}), tokenizer)
        rows = [(QUESTION, ANSWER, HISTORY)]
        (sample,) = samples_module.to_samples(rows, builder, "filtered_pairs")
        return sample

    @pytest.fixture
    def end(self, request):
        """The end of a turn, and that of the last one."""
        is_chat = "chat_template" in request.node.name
        return ("<end_of_turn>\n", "<end_of_turn>\n<eos>") if is_chat else ("<eos>", "<eos>")

    def test_every_answer_with_its_end_is_in_the_loss(self, sample, encode, tokenizer, end):
        row = encode(sample, completion_only_loss=True)
        parts = [list(part) for _, part in groupby(row["labels"], key=lambda one: one != -100)]
        assert [part[0] == -100 for part in parts] == [True, False] * 3
        learned = [tokenizer.decode(part) for part in parts[1::2]]
        assert learned == [
            f"東京です。{end[0]}",
            f"<eos>は文の終わりです。{end[0]}",
            f"{ANSWER}{end[1]}",
        ]
        assert all(
            label in (-100, token)
            for label, token in zip(row["labels"], row["input_ids"], strict=True)
        )

    def test_ids_are_those_of_the_whole_text(self, sample, encode, tokenizer):
        row = encode(sample, completion_only_loss=False)
        whole = unmark(f"{sample['prompt']}{sample['completion']}<eos>")
        assert tokenizer.decode(row["input_ids"]) == f"<bos>{whole}"
        assert row["labels"] == row["input_ids"]
        assert row == {**encode(sample, completion_only_loss=True), "labels": row["labels"]}
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
        ends = 1 if "<end_of_turn>" in sample["prompt"] else 3
        assert row["input_ids"].count(tokenizer.eos_token_id) == ends
        assert whole.index("短く答えなさい。\n\n質問です。") < whole.index("<eos>は何ですか。")

    def test_cut_sample_keeps_the_answers_within_the_limit(self, sample, encode, tokenizer):
        """Without the last answer there is still something to learn."""
        labels = encode(sample, completion_only_loss=True)["labels"]
        one = Dataset.from_list([sample])
        last = len(labels) - 1 - labels[::-1].index(-100)
        encoded, counts = encode_dataset(one, tokenizer, last, True)
        assert encoded[0]["labels"] == labels[:last]
        assert (counts["cut"], counts["samples"]) == (1, 1)
        assert counts["loss_tokens"] == sum(label != -100 for label in labels[:last])
        first = next(place for place, label in enumerate(labels) if label != -100)
        assert encode_dataset(one, tokenizer, first, True)[1]["dropped_nothing_to_learn"] == 1
        assert encode_dataset(one, tokenizer, last, True, "drop")[1]["dropped_over_long"] == 1

    def test_samples_without_history_stand_beside(self, sample, prompts, tokenizer, encode):
        (plain,) = to_samples([(QUESTION, ANSWER)], prompts, tokenizer)
        assert "earlier_answers" not in plain
        mixed = Dataset.from_list([sample, {**plain, "earlier_answers": None}])
        encoded, _ = encode_dataset(mixed, tokenizer, LONG, completion_only_loss=True)
        alone = [encode(one, completion_only_loss=True) for one in (sample, plain)]
        assert encoded.to_list() == alone


@pytest.mark.parametrize("completion_only_loss", [False, True])
@pytest.mark.parametrize("over_long", ["cut", "drop"])
def test_batches_equal_single_samples(
    prompts, tokenizer, monkeypatch, completion_only_loss, over_long
):
    monkeypatch.setattr(samples_module, "BATCH_SAMPLES", 7)
    chance = random.Random(0)
    signs = ["質問", "東京", "\n", " ", "。", "😀", "a", "<end_of_turn>", "\u3000"]
    texts = ["".join(chance.choices(signs, k=chance.randrange(60))) for _ in range(80)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    rows = to_samples(pairs, prompts, tokenizer)
    whole = [encode_sample(row, tokenizer, LONG, completion_only_loss) for row in rows]
    lengths = sorted(len(row["input_ids"]) for row in whole)
    limit = lengths[len(lengths) // 2]
    kept = [
        row
        for row in whole
        if (over_long == "cut" or len(row["input_ids"]) <= limit)
        and any(label != -100 for label in row["labels"][:limit])
    ]
    expected = [{key: values[:limit] for key, values in row.items()} for row in kept]
    encoded, counts = encode_dataset(
        Dataset.from_list(rows), tokenizer, limit, completion_only_loss, over_long
    )
    assert encoded.to_list() == expected
    assert 0 < len(expected) <= len(rows)
    longer = sum(length > limit for length in lengths)
    labels = [label for row in expected for label in row["labels"]]
    assert counts["longest"] == lengths[-1]
    assert counts["samples"] == len(expected)
    assert counts["tokens"] == len(labels)
    assert counts["loss_tokens"] == sum(label != -100 for label in labels)
    assert counts["cut"] == sum(len(row["input_ids"]) > limit for row in kept)
    assert counts["dropped_over_long"] == (longer if over_long == "drop" else 0)
    left_out = counts["dropped_over_long"] + counts["dropped_nothing_to_learn"]
    assert counts["samples"] + left_out == len(rows)
    # there is a sample of each kind
    assert counts["cut"] > 0 or over_long == "drop"
    assert counts["dropped_nothing_to_learn"] > 0 or not completion_only_loss


@pytest.mark.parametrize(("over_long", "beyond"), [("cut", (1, 1, 0)), ("drop", (0, 0, 1))])
def test_a_sample_of_exactly_the_length_is_whole(sample, encode, tokenizer, over_long, beyond):
    one = Dataset.from_list([sample])
    length = len(encode(sample, completion_only_loss=True)["input_ids"])
    for limit, expected in ((length, (1, 0, 0)), (length - 1, beyond)):
        _, counts = encode_dataset(one, tokenizer, limit, True, over_long)
        assert (counts["samples"], counts["cut"], counts["dropped_over_long"]) == expected


@pytest.mark.parametrize("over_long", ["cut", "drop"])
def test_no_samples(tokenizer, over_long):
    encoded, counts = encode_dataset(Dataset.from_list([]), tokenizer, LONG, True, over_long)
    assert encoded.column_names == ["input_ids", "labels"]
    assert len(encoded) == 0
    assert set(counts.values()) == {0}


class TestWarning:
    @pytest.mark.parametrize(
        ("over_long", "said"),
        [("cut", "1 are cut and 0 dropped"), ("drop", "0 are cut and 1 dropped")],
    )
    def test_more_than_a_hundredth(self, prompts, tokenizer, caplog, over_long, said):
        pairs = [(QUESTION, ANSWER * 50)] + [(QUESTION, ANSWER)] * 98
        samples = Dataset.from_list(to_samples(pairs, prompts, tokenizer))
        limit = len(encode_sample(samples[1], tokenizer, LONG, False)["input_ids"])
        longest = len(encode_sample(samples[0], tokenizer, LONG, False)["input_ids"])
        encode_dataset(samples, tokenizer, limit, True, over_long)
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith(f"Of 99 samples {said}, as they exceed")
        assert f"sft.max_seq_length={limit} tokens (the longest has {longest})" in message
        caplog.clear()
        more = Dataset.from_list([*samples, samples[1]])
        encode_dataset(more, tokenizer, limit, True, over_long)
        assert not caplog.records

    def test_samples_with_nothing_to_learn(self, prompts, tokenizer, caplog):
        samples = Dataset.from_list(to_samples([(QUESTION, "")], prompts, tokenizer))
        encode_dataset(samples, tokenizer, LONG, True)
        (message,) = [record.getMessage() for record in caplog.records]
        assert "1 more have no answer within it" in message


def test_tokenizer_without_eos_is_refused(sample, tiny_nf4):
    tokenizer = tiny_nf4.load_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        encode_dataset(Dataset.from_list([sample]), tokenizer, LONG, completion_only_loss=False)
