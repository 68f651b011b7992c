import shutil
import sys
import types

import pytest
import torch

from ja_instruct.datasets import AdapterDataset, QuantizedModelDataset
from ja_instruct.devices import load_nf4_model
from ja_instruct.models import ModelArtifact, ModelDirectory
from ja_instruct.pipelines.inference import generation
from ja_instruct.pipelines.inference.generation import generate_answers
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.quantization.nodes import quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.sft.backends import adapt_with_peft
from ja_instruct.pipelines.sft.parameters import SftParameters

PROMPTS = ["日本の首都は", "富士山の高さを教えてください。\n\n", "春", "季節は四つあります。"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def parameters(read_parameters):
    """Plain greedy decoding on the CPU."""
    section = read_parameters("test")["inference"]
    plain = {"bad_words": [], "repetition_penalty": 1.0, "max_new_tokens": NEW_TOKENS}
    return InferenceParameters(**{**section, **plain})


@pytest.fixture(scope="module")
def adapter(tiny_nf4, read_parameters, tmp_path_factory):
    """An adapter that says something: a fresh one is zero."""
    model, tokenizer = adapt_with_peft(tiny_nf4, SftParameters(**read_parameters("test")["sft"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    dataset = AdapterDataset(filepath=tmp_path_factory.mktemp("adapter") / "adapter")
    dataset.save(ModelArtifact(model, tokenizer, {}))
    return dataset.load()


def decode_slowly(model, tokenizer, prompt, penalty=1.0):
    """Greedy decoding without cache, processors or ``generate``: the ids of the new tokens."""
    ids = tokenizer(prompt)["input_ids"]
    length = len(ids)
    while len(ids) - length < NEW_TOKENS:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].float()
        seen = torch.tensor(sorted(set(ids)))
        said = logits[seen]
        logits[seen] = torch.where(said > 0, said / penalty, said * penalty)
        ids.append(int(logits.argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[length:]


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_answers_are_those_of_slow_greedy_decoding(tiny_nf4, parameters, penalty):
    parameters = parameters.model_copy(update={"repetition_penalty": penalty})
    model = load_nf4_model(tiny_nf4, "cpu").eval()
    tokenizer = tiny_nf4.load_tokenizer()
    answers = list(generate_answers(PROMPTS, tiny_nf4, None, parameters))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = decode_slowly(model, tokenizer, prompt, penalty)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.new_tokens == len(ids)
        assert answer.prompt_tokens == len(tokenizer(prompt)["input_ids"])
        assert answer.finished == (ids[-1] == tokenizer.eos_token_id)
    assert any(answer.text for answer in answers)


def test_cpu_weights_are_those_of_the_4_bit_model(tiny_nf4):
    in_4_bits = tiny_nf4.load_model(device_map="cpu", dtype=torch.float32)
    plain = load_nf4_model(tiny_nf4, "cpu")
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    ids = tiny_nf4.load_tokenizer()(PROMPTS[1], return_tensors="pt")
    with torch.no_grad():
        expected, logits = in_4_bits(**ids).logits.float(), plain(**ids).logits
    # the 4-bit layers compute in bfloat16, which keeps 8 bits
    assert (logits - expected).norm() / expected.norm() < 0.02


def test_is_deterministic(tiny_nf4, parameters):
    def texts():
        return [answer.text for answer in generate_answers(PROMPTS, tiny_nf4, None, parameters)]

    assert texts() == texts()


def test_bad_words_never_appear(tiny_nf4, parameters):
    tokenizer = tiny_nf4.load_tokenizer()
    model = load_nf4_model(tiny_nf4, "cpu").eval()
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


def test_bad_word_of_several_tokens_is_cut_short(tiny_nf4, parameters):
    """What may not appear is the whole word; its beginning may."""
    tokenizer = tiny_nf4.load_tokenizer()
    model = load_nf4_model(tiny_nf4, "cpu").eval()
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


def test_adapter_changes_the_answers(tiny_nf4, parameters, adapter):
    base = [answer.text for answer in generate_answers(PROMPTS, tiny_nf4, None, parameters)]
    tuned = [answer.text for answer in generate_answers(PROMPTS, tiny_nf4, adapter, parameters)]
    assert all(one != other for one, other in zip(base, tuned, strict=True))


def test_merged_adapter_answers_as_the_unmerged_one(tiny_nf4, parameters, adapter):
    from peft import PeftModel

    tokenizer = tiny_nf4.load_tokenizer()
    unmerged = PeftModel.from_pretrained(load_nf4_model(tiny_nf4, "cpu"), adapter.path).eval()
    for prompt, answer in zip(
        PROMPTS, generate_answers(PROMPTS, tiny_nf4, adapter, parameters), strict=True
    ):
        ids = decode_slowly(unmerged, tokenizer, prompt)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_answer_that_the_model_ends_itself(tiny_gemma2, tmp_path, parameters, read_parameters):
    """A model that, after one prompt, says EOS instead of what it would say first."""
    tokenizer = tiny_gemma2.load_tokenizer()
    model = tiny_gemma2.load_model()
    (first, *_) = decode_slowly(model.eval(), tokenizer, PROMPTS[0])
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[tokenizer.eos_token_id] = 3 * embeddings[first]
    shutil.copytree(tiny_gemma2.path, tmp_path / "ending")
    model.save_pretrained(tmp_path / "ending")
    section = QuantizationParameters(**read_parameters("test")["quantization"])
    dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
    dataset.save(quantize(ModelDirectory(tmp_path / "ending", "ending"), section)[0])

    (answer,) = generate_answers(PROMPTS[:1], dataset.load(), None, parameters)
    assert (answer.finished, answer.new_tokens, answer.text) == (True, 1, "")


def test_answers_come_one_by_one_in_order(tiny_nf4, parameters):
    answers = generate_answers(PROMPTS, tiny_nf4, None, parameters)
    tokenizer = tiny_nf4.load_tokenizer()
    for prompt in PROMPTS:
        assert next(answers).prompt_tokens == len(tokenizer(prompt)["input_ids"])
    assert next(answers, None) is None


def test_unsloth_is_asked_for_its_inference_mode(tiny_nf4, read_parameters, monkeypatch):
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
    base = InferenceParameters(**read_parameters("base")["inference"])
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
