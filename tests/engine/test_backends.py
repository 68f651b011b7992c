import shutil
import sys
import types

import pytest
import torch

from ja_instruct.control_tokens import ControlTokens
from ja_instruct.datasets import QuantizedModelDataset
from ja_instruct.engine import backends as generation
from ja_instruct.engine.answer import AnswerDecoder
from ja_instruct.engine.backends import load_engine
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.quantization.nodes import quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

PROMPTS = ["日本の首都は", "富士山の高さを教えてください。\n\n", "春", "季節は四つあります。"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def parameters(read_parameters):
    """Plain greedy decoding on the CPU."""
    section = read_parameters("test")["inference"]
    plain = {"bad_words": [], "repetition_penalty": 1.0, "max_new_tokens": NEW_TOKENS}
    return InferenceParameters(**{**section, **plain})


@pytest.fixture(scope="module")
def answer_in_order():
    """A function that returns an iterator of the recipe's engine's answers."""

    def generate(prompts, model, adapter, parameters, **changes):
        parameters = parameters.model_copy(update={"engine": "one_by_one"})
        engine = load_engine(model, adapter, parameters, **changes)
        for expected, (position, answer) in enumerate(engine.generate(prompts)):
            assert position == expected
            yield answer

    return generate


@pytest.fixture(scope="module", params=["one_by_one", "batched"])
def generate_answers(request):
    """A function that returns an engine's answers, in the order of the prompts."""

    def generate(prompts, model, adapter, parameters, **changes):
        parameters = parameters.model_copy(update={"engine": request.param})
        engine = load_engine(model, adapter, parameters, **changes)
        answers = list(engine.generate(prompts))
        assert sorted(position for position, _ in answers) == list(range(len(prompts)))
        return [answer for _, answer in sorted(answers, key=lambda one: one[0])]

    return generate


@pytest.fixture(scope="module")
def model(tiny_nf4):
    return load_nf4_model(tiny_nf4, "cpu").eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_nf4):
    return tiny_nf4.load_tokenizer()


def decode_slowly(model, tokenizer, prompt, penalty=1.0, ignored=0, spared=(), words=()):
    """Greedy decoding without cache, processors or ``generate``: the ids of the new tokens."""
    ids = tokenizer(prompt)["input_ids"]
    length = len(ids)
    while len(ids) - length < NEW_TOKENS:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].float()
        seen = torch.tensor(sorted(set(ids[ignored:]) - set(spared)), dtype=torch.long)
        said = logits[seen]
        logits[seen] = torch.where(said > 0, said / penalty, said * penalty)
        ids.append(
            next(
                token
                for token in logits.argsort(descending=True, stable=True).tolist()
                if not any(
                    word in tokenizer.decode([*ids[length:], token], skip_special_tokens=True)
                    for word in words
                )
            )
        )
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[length:]


@pytest.mark.parametrize(
    ("penalty", "penalty_on", "spares_end"),
    [
        (1.0, "prompt_and_answer", False),
        (1.1, "prompt_and_answer", False),
        (2.0, "prompt_and_answer", False),
        (2.0, "prompt_and_answer", True),
        (2.0, "answer", False),
        (2.0, "answer", True),
    ],
)
def test_answers_equal_slow_greedy_decoding(
    generate_answers, tiny_nf4, parameters, model, tokenizer, penalty, penalty_on, spares_end
):
    """Also for prompts that contain EOS, as examples in the format of training do."""
    changes = {"repetition_penalty": penalty, "penalty_on": penalty_on}
    changed = parameters.model_copy(update={**changes, "penalty_spares_end": spares_end})
    prompts = [*PROMPTS, *(f"{prompt}{tokenizer.eos_token}{prompt}" for prompt in PROMPTS)]
    answers = generate_answers(prompts, tiny_nf4, None, changed)
    for prompt, answer in zip(prompts, answers, strict=True):
        length = len(tokenizer(prompt)["input_ids"])
        ignored = length if penalty_on == "answer" else 0
        spared = [tokenizer.eos_token_id] if spares_end else []
        ids = decode_slowly(model, tokenizer, prompt, penalty, ignored, spared)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.new_tokens, answer.prompt_tokens) == (len(ids), length)
        assert answer.finished == (ids[-1] == tokenizer.eos_token_id)
    assert any(answer.text for answer in answers)


def test_cpu_weights_equal_those_of_the_4_bit_model(tiny_nf4):
    in_4_bits = tiny_nf4.load_model(device_map="cpu", dtype=torch.float32)
    plain = load_nf4_model(tiny_nf4, "cpu")
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    ids = tiny_nf4.load_tokenizer()(PROMPTS[1], return_tensors="pt")
    with torch.no_grad():
        expected, logits = in_4_bits(**ids).logits.float(), plain(**ids).logits
    # the 4-bit layers compute in bfloat16, which keeps 8 bits
    assert (logits - expected).norm() / expected.norm() < 0.02


def test_bad_words_never_appear(generate_answers, tiny_nf4, parameters, model, tokenizer):
    said = {
        tokenizer.decode([token])
        for prompt in PROMPTS
        for token in decode_slowly(model, tokenizer, prompt)
    }
    bad_words = sorted(word for word in said if word.strip() and "�" not in word)
    assert bad_words
    without = parameters.model_copy(update={"bad_words": tuple(bad_words)})
    for answer in generate_answers(PROMPTS, tiny_nf4, None, without):
        assert not [word for word in bad_words if word in answer.text]
        assert answer.new_tokens == NEW_TOKENS


def test_beginning_of_a_bad_word_is_allowed(
    generate_answers, tiny_nf4, parameters, model, tokenizer
):
    """What may not appear is the whole word; its beginning may."""
    # enough of them that one will do, whatever the tiny tokenizer was trained on
    for prompt in (f"{prompt}{end}" for end in ("", *"はがのをに。、一二三") for prompt in PROMPTS):
        ids = decode_slowly(model, tokenizer, prompt)
        word = tokenizer.decode(ids[:2])
        if tokenizer(word, add_special_tokens=False)["input_ids"] == ids[:2] and ids[0] != ids[1]:
            break
    else:
        pytest.fail("no prompt's answer begins with two tokens that can be banned together")
    without = parameters.model_copy(update={"bad_words": (word,)})
    (answer,) = generate_answers([prompt], tiny_nf4, None, without)
    assert word not in answer.text
    assert answer.text.startswith(tokenizer.decode(ids[:1]).strip())


def test_adapter_changes_the_answers(
    generate_answers, tiny_nf4, parameters, tiny_adapter, tokenizer
):
    """They are those of the unmerged adapter, although a CPU's engine merges it."""
    from peft import PeftModel

    base = generate_answers(PROMPTS, tiny_nf4, None, parameters)
    tuned = generate_answers(PROMPTS, tiny_nf4, tiny_adapter, parameters)
    assert all(one.text != other.text for one, other in zip(base, tuned, strict=True))
    unmerged = PeftModel.from_pretrained(load_nf4_model(tiny_nf4, "cpu"), tiny_adapter.path).eval()
    for prompt, answer in zip(PROMPTS, tuned, strict=True):
        ids = decode_slowly(unmerged, tokenizer, prompt)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_bad_words_in_text_never_appear(generate_answers, tiny_nf4, parameters, model, tokenizer):
    # enough of them that some answer leaks a word, whatever the tiny model says
    prompts = [f"{prompt}{end}" for prompt in PROMPTS for end in "はの。一"]
    said = "".join(
        tokenizer.decode(decode_slowly(model, tokenizer, prompt), skip_special_tokens=True)
        for prompt in prompts
    )
    # pairs of characters that no token spells, so that their ids ban another way to say them
    pairs = {said[i : i + 2] for i in range(len(said) - 1)}
    words = sorted(word for word in pairs if "�" not in word and word == word.strip())
    assert len(words) > 5
    changes = {"bad_words": tuple(words), "bad_words_in": "tokens"}
    by_tokens = parameters.model_copy(update=changes)
    leaky = generate_answers(prompts, tiny_nf4, None, by_tokens)
    assert any(word in answer.text for answer in leaky for word in words)
    by_text = parameters.model_copy(update={**changes, "bad_words_in": "text"})
    answers = generate_answers(prompts, tiny_nf4, None, by_text)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = decode_slowly(model, tokenizer, prompt, words=words)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert not [word for word in words if word in answer.text]


@pytest.fixture
def model_that_says(tiny_gemma2, tmp_path, read_parameters):
    """A function that makes a model that, after a prompt, says a token before anything else.

    ``changes`` are those of its tokenizer.
    """

    def make(token, prompt, **changes):
        tokenizer = tiny_gemma2.load_tokenizer()
        model = tiny_gemma2.load_model()
        (first, *_) = decode_slowly(model.eval(), tokenizer, prompt)
        embeddings = model.get_input_embeddings().weight
        with torch.no_grad():
            embeddings[tokenizer.convert_tokens_to_ids(token)] = 3 * embeddings[first]
        shutil.copytree(tiny_gemma2.path, tmp_path / "ending")
        model.save_pretrained(tmp_path / "ending")
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path / "ending")
        section = QuantizationParameters(**read_parameters("test")["quantization"])
        dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
        dataset.save(quantize(ModelDirectory(tmp_path / "ending", "ending"), section))
        return dataset.load()

    return make


def test_answer_that_the_model_ends_itself(generate_answers, model_that_says, parameters):
    model = model_that_says("<eos>", PROMPTS[0])
    (answer,) = generate_answers(PROMPTS[:1], model, None, parameters)
    assert (answer.finished, answer.new_tokens, answer.text) == (True, 1, "")


def test_eos_that_the_generation_config_lacks_ends_an_answer(
    generate_answers, model_that_says, parameters
):
    """Training appends the tokenizer's EOS, whatever the generation config says."""
    model = model_that_says("<end_of_turn>", PROMPTS[0], eos_token="<end_of_turn>")
    assert model.load_model().generation_config.eos_token_id == 1
    (answer,) = generate_answers(PROMPTS[:1], model, None, parameters)
    assert (answer.finished, answer.new_tokens, answer.text) == (True, 1, "")


def test_end_of_the_generation_config_still_ends_an_answer(
    generate_answers, model_that_says, parameters
):
    model = model_that_says("<eos>", PROMPTS[0], eos_token="<end_of_turn>")
    (answer,) = generate_answers(PROMPTS[:1], model, None, parameters)
    assert (answer.finished, answer.new_tokens, answer.text) == (True, 1, "")


def test_text_that_spells_a_token_is_text_in_a_prompt(
    generate_answers, tiny_nf4, parameters, tokenizer
):
    control = ControlTokens(tokenizer)
    spelled = "終わりの印<eos>とは何ですか。"
    (marked,) = generate_answers([control.mark(spelled)], tiny_nf4, None, parameters)
    (meant,) = generate_answers([spelled], tiny_nf4, None, parameters)
    assert meant.prompt_tokens == len(tokenizer(spelled)["input_ids"])
    as_text = tokenizer(spelled, split_special_tokens=True)["input_ids"]
    assert marked.prompt_tokens == len(as_text) > meant.prompt_tokens


def test_end_in_the_prompt_is_spared_on_request(generate_answers, model_that_says, parameters):
    prompt = f"春<eos>{PROMPTS[0]}"
    model = model_that_says("<eos>", prompt)
    for spares_end in (True, False):
        changes = {"repetition_penalty": 100.0, "penalty_spares_end": spares_end}
        (answer,) = generate_answers([prompt], model, None, parameters.model_copy(update=changes))
        assert answer.finished is spares_end


def test_end_of_turn_ends_an_answer_on_request(generate_answers, model_that_says, parameters):
    model = model_that_says("<end_of_turn>", PROMPTS[0])
    (answer,) = generate_answers(PROMPTS[:1], model, None, parameters, stop_at_end_of_turn=True)
    assert (answer.finished, answer.new_tokens, answer.text) == (True, 1, "")
    (answer,) = generate_answers(PROMPTS[:1], model, None, parameters)
    assert answer.new_tokens > 1


def test_prompt_that_cannot_be_answered_does_not_stop_the_others(
    answer_in_order, tiny_nf4, parameters, monkeypatch, caplog
):
    expected = [answer.text for answer in answer_in_order(PROMPTS, tiny_nf4, None, parameters)]
    generate = generation.OneByOne._generate

    second = tiny_nf4.load_tokenizer()(PROMPTS[1])["input_ids"]

    def fail_at_the_second(self, prompt_ids):
        if prompt_ids == second:
            raise torch.OutOfMemoryError("CUDA out of memory.\nSee the documentation")
        return generate(self, prompt_ids)

    monkeypatch.setattr(generation.OneByOne, "_generate", fail_at_the_second)
    answers = list(answer_in_order(PROMPTS, tiny_nf4, None, parameters))
    assert [one.text for one in answers] == [expected[0], "", *expected[2:]]
    assert [one.error for one in answers if one.error] == ["OutOfMemoryError: CUDA out of memory."]
    assert "generating the answer of prompt 1 failed" in caplog.text


def test_recipe_passes_only_its_own_arguments_to_generate(
    tiny_nf4, read_parameters, monkeypatch, tokenizer
):
    """Byte for byte the recipe's decoding: its own arguments and none of the further ones."""
    section = read_parameters("base")["inference"]
    base = InferenceParameters(**{**section, "engine": "one_by_one", "device": "cpu"})
    engine = load_engine(tiny_nf4, None, base)
    calls = []

    def generate(input_ids, attention_mask, **kwargs):
        calls.append(kwargs)
        return input_ids

    monkeypatch.setattr(engine._model, "generate", generate)
    list(engine.generate(PROMPTS[:1]))
    assert calls == [
        {
            "max_new_tokens": 1024,
            "do_sample": False,
            "use_cache": True,
            "repetition_penalty": 1.1,
            "bad_words_ids": [
                tokenizer(word, add_special_tokens=False)["input_ids"] for word in base.bad_words
            ],
        }
    ]


def test_answers_come_one_by_one_in_order(answer_in_order, tiny_nf4, parameters, tokenizer):
    answers = answer_in_order(PROMPTS, tiny_nf4, None, parameters)
    for prompt in PROMPTS:
        assert next(answers).prompt_tokens == len(tokenizer(prompt)["input_ids"])
    assert next(answers, None) is None


def test_unsloth_uses_its_inference_mode(tiny_nf4, read_parameters, monkeypatch):
    calls = []
    model = tiny_nf4.load_model(device_map="cpu")

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**kwargs):
            calls.append(kwargs)
            return model, "tokenizer"

        @staticmethod
        def for_inference(model):
            calls.append(model)

    fake = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    section = read_parameters("base")["inference"]
    base = InferenceParameters(**{**section, "backend": "unsloth", "engine": "one_by_one"})
    loaded = generation.LOADERS["unsloth"](tiny_nf4, None, base)
    assert loaded == (model, "tokenizer")
    assert calls == [
        {
            "model_name": str(tiny_nf4.path),
            "max_seq_length": 4096,
            "dtype": None,
            "load_in_4bit": True,
            "local_files_only": True,
        },
        model,
    ]


def test_bad_word_without_a_token_is_left_out(parameters):
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(vocab={"a": 0, "b": 1, "<|endoftext|>": 2}, merges=[])
    assert tokenizer("質問")["input_ids"] == []
    words = parameters.model_copy(update={"bad_words": ("質問", "ab")})
    decoder = AnswerDecoder.of(tokenizer, words, (2,), stop_at_end_of_turn=False)
    assert decoder.bad_words_ids == [[0, 1]]
