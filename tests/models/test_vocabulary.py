"""Token ids are compared with the rows of the embedding."""

import json
import logging
import re
import shutil

import pytest

from ja_instruct.datasets import ColbertCheckpointDataset, ModelDirectoryDataset
from ja_instruct.errors import InputError
from ja_instruct.models.vocabulary import check_tokenizer
from ja_instruct.pipelines.quantization.nodes import quantize


@pytest.fixture
def model(tiny_gemma2, tmp_path):
    """A copy of the tiny model, whose embedding has more rows than there are tokens."""
    return shutil.copytree(tiny_gemma2.path, tmp_path / "model")


@pytest.fixture
def check(model):
    """A function that checks the copy as an input of a run."""
    return ModelDirectoryDataset(filepath=model).check


@pytest.fixture
def save_tokens(model, tiny_gemma2):
    """A function that adds tokens to the copy's tokenizer, as users do."""

    def save(tokens, **changes):
        tokenizer = tiny_gemma2.load_tokenizer()
        tokenizer.add_tokens(tokens)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(model)
        return tokenizer

    return save


@pytest.fixture
def rows(tiny_gemma2):
    return tiny_gemma2.load_config()["vocab_size"]


@pytest.fixture
def count(tiny_gemma2):
    return len(tiny_gemma2.load_tokenizer())


def change(path, change):
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_fewer_tokens_than_rows_are_fine(check, save_tokens, rows, count):
    check()
    assert count < rows
    # up to the last row
    save_tokens([f"<new {number}>" for number in range(rows - count)])
    check()


def test_a_token_without_a_row_is_named_with_both_numbers(check, save_tokens, model, rows, count):
    tokenizer = save_tokens([f"<new {number}>" for number in range(rows - count + 3)])
    assert len(tokenizer) == rows + 3
    expected = (
        f"{model}/tokenizer.json: token '<new {rows - count + 2}>' has the id {rows + 2}, but the "
        f"model has {rows} embedding rows (vocab_size in config.json), for the ids 0 to {rows - 1};"
    )
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        check()
    assert "resize_token_embeddings" in str(caught.value)


def test_it_is_found_before_quantization(check, save_tokens, model, rows, read_parameters):
    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

    save_tokens([f"<new {number}>" for number in range(rows)])
    parameters = QuantizationParameters(**read_parameters("test")["quantization"])
    with pytest.raises(InputError, match="embedding rows"):
        quantize(ModelDirectory(model, "tiny"), parameters)


def test_a_token_that_tokenizer_config_alone_has(check, model, rows):
    def add(content):
        content["added_tokens_decoder"] = {str(rows): {"content": "<late>"}}

    change(model / "tokenizer_config.json", add)
    with pytest.raises(InputError, match=f"token '<late>' has the id {rows}, "):
        check()


class TestUnusedSpecialToken:
    """Gemma 3's text models have ``<image_soft_token>``, for which they have no row."""

    TOKEN = "<image_soft_token>"

    @pytest.fixture
    def config(self, count):
        return {"vocab_size": count}

    @pytest.fixture
    def save(self, save_tokens):
        from tokenizers import AddedToken

        return lambda **changes: save_tokens([AddedToken(self.TOKEN, special=True)], **changes)

    def test_is_accepted(self, save, model, config, caplog):
        save()
        with caplog.at_level(logging.INFO):
            check_tokenizer(model, config, "")
        assert f"{model}/tokenizer.json: the model has no embedding for {self.TOKEN}" in caplog.text

    def test_is_refused_if_the_chat_template_has_it(self, save, model, config):
        save(chat_template="{{ bos_token }}<image_soft_token>{{ messages[0].content }}")
        with pytest.raises(InputError, match=self.TOKEN):
            check_tokenizer(model, config, "")

    def test_is_refused_if_it_ends_texts(self, save, model, config):
        save(eos_token=self.TOKEN)
        with pytest.raises(InputError, match=self.TOKEN):
            check_tokenizer(model, config, "")


def test_rows_of_a_multimodal_model_are_those_of_its_text_part(model, count):
    config = {"vocab_size": 3, "text_config": {"vocab_size": count}}
    check_tokenizer(model, config, "")
    with pytest.raises(InputError, match=f"has {count - 1} embedding rows"):
        check_tokenizer(model, {"text_config": {"vocab_size": count - 1}}, "")


def test_vocabulary_that_is_a_list(tmp_path):
    """As that of a Unigram model, whose pieces have scores."""
    content = {"model": {"vocab": [["a", -1.0], ["b", -2.0], ["c", -3.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    check_tokenizer(tmp_path, {"vocab_size": 3}, "")
    with pytest.raises(InputError, match="has the id 2, but the model has 2 embedding rows"):
        check_tokenizer(tmp_path, {"vocab_size": 2}, "")


def test_retriever_is_checked_too(clean_project, tmp_path):
    source = clean_project / "data/06_models/test/tiny-colbert"
    directory = shutil.copytree(source, tmp_path / "colbert")
    dataset = ColbertCheckpointDataset(filepath=directory)
    dataset.check()
    change(directory / "config.json", lambda content: content.update(vocab_size=100))
    with pytest.raises(InputError, match="the model has 100 embedding rows"):
        dataset.check()
