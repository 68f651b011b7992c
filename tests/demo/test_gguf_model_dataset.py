import hashlib
import importlib

import numpy as np
import pytest
from kedro.io import DatasetError
from safetensors.numpy import save_file

from ja_instruct.demo import GGUFModelDataset
from ja_instruct.demo.gguf_model_dataset import assemble_gguf
from ja_instruct.errors import InputError
from ja_instruct.models.directory import write_provenance

PIECES = (b"GGUF" + b"\x00" * 10, b"second piece", b"third")
SHA256 = hashlib.sha256(b"".join(PIECES)).hexdigest()
NINE_KANJI_WORDS = "日本の首都は東京です。富士山の高さは3,776メートルです。"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a file in pieces, like the packages of models."""
    directory = tmp_path / "site" / "tiny_gguf"
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(
        "from pathlib import Path\n\n\n"
        "def chunk_paths():\n"
        "    return sorted(Path(__file__).parent.glob('piece-*'))\n"
    )
    for number, piece in enumerate(PIECES):
        (directory / f"piece-{number}").write_bytes(piece)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return "tiny_gguf"


def make_dataset(tmp_path, package, sha256=SHA256):
    return GGUFModelDataset(
        package=package,
        sha256=sha256,
        gguf_filepath=tmp_path / "models" / "m.gguf",
        filepath=tmp_path / "models" / "base_model",
        model_id="google/gemma-3-270m",
        parameters=268098176,
    )


@pytest.mark.parametrize("old", [None, b"half a download"])
def test_pieces_are_joined_in_order_once(tmp_path, package, old):
    target = tmp_path / "models" / "m.gguf"
    target.parent.mkdir()
    if old is not None:
        target.write_bytes(old)
    assert assemble_gguf(package, SHA256, target) == target
    assert target.read_bytes() == b"".join(PIECES)
    assert [path.name for path in target.parent.iterdir()] == ["m.gguf"]
    before = target.stat()
    assemble_gguf(package, SHA256, target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_wrong_checksum_is_refused_and_leaves_nothing(tmp_path, package):
    target = tmp_path / "models" / "m.gguf"
    with pytest.raises(InputError, match=f"SHA-256 {SHA256}, expected {'0' * 64}.*reinstall"):
        assemble_gguf(package, "0" * 64, target)
    assert list(target.parent.iterdir()) == []


def test_missing_package_names_the_extra(tmp_path):
    dataset = make_dataset(tmp_path, "no_such_package")
    with pytest.raises(InputError, match=r"'no-such-package' is not installed.*\[demo\]"):
        dataset.check()
    assert not dataset.exists()


def test_existing_file_needs_no_package(tmp_path):
    target = tmp_path / "models" / "m.gguf"
    target.parent.mkdir()
    target.write_bytes(b"".join(PIECES))
    make_dataset(tmp_path, "no_such_package").check()
    assert assemble_gguf("no_such_package", SHA256, target) == target


def test_converted_model_needs_no_package(tmp_path):
    dataset = make_dataset(tmp_path, "no_such_package")
    directory = tmp_path / "models" / "base_model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "gemma3_text"}', "utf-8")
    assert not dataset.exists()
    assert dataset.peek_config() is None
    assert dataset.module_names() is None
    weights = {
        "model.layers.0.mlp.up_proj.weight": np.zeros((2, 3)),
        "model.norm.weight": np.ones(3),
    }
    save_file(weights, directory / "model.safetensors")
    write_provenance(directory, {"source": {"revision": f"sha256:{SHA256}"}})
    assert dataset.exists()
    assert dataset.peek_config() == {"model_type": "gemma3_text"}
    assert dataset.module_names() == {"model.layers.0.mlp.up_proj"}
    dataset.check()
    model = dataset.load()
    assert (model.path, model.model_id) == (directory.resolve(), "google/gemma-3-270m")
    assert model.revision == f"sha256:{SHA256}"
    assert not make_dataset(tmp_path, "no_such_package", sha256="1" * 64).exists()


def test_is_never_saved_to(tmp_path, package):
    with pytest.raises(DatasetError, match="not saved to"):
        make_dataset(tmp_path, package).save(object())


@pytest.fixture(scope="module")
def gemma_tokenizer(tmp_path_factory, read_configuration):
    from gguf import GGUFReader

    from ja_instruct.demo.gguf_model_dataset import read_gemma_tokenizer

    entry = read_configuration("demo")["catalog"]["base_model"]
    target = tmp_path_factory.mktemp("gguf") / "gemma.gguf"
    return read_gemma_tokenizer(
        GGUFReader(assemble_gguf(entry["package"], entry["sha256"], target))
    )


@pytest.mark.demo
def test_tokenizer_adds_bos(gemma_tokenizer):
    ids = gemma_tokenizer("日本")["input_ids"]
    assert ids[0] == gemma_tokenizer.bos_token_id == 2
    assert gemma_tokenizer.bos_token_id not in ids[1:]


@pytest.mark.demo
def test_tokenizer_merges_japanese_words(gemma_tokenizer):
    assert gemma_tokenizer.tokenize("日本") == ["日本"]
    tokens = gemma_tokenizer.tokenize(NINE_KANJI_WORDS)
    assert "東京" in tokens
    assert len(tokens) < 0.75 * len(NINE_KANJI_WORDS)


@pytest.mark.demo
@pytest.mark.parametrize(
    "text",
    [
        NINE_KANJI_WORDS,
        "行頭\n\n  字下げ\tタブ　全角空白\n- 箇条書き",
        "絵文字😀、珍しい漢字𠮷、結合文字か\u3099、区切り\u2028。",
        "### 質問:\n{}\n\n### 回答:\n",
    ],
)
def test_tokenizer_round_trip(gemma_tokenizer, text):
    ids = gemma_tokenizer(text)["input_ids"]
    assert gemma_tokenizer.unk_token_id not in ids
    assert gemma_tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.demo
def test_tokenizer_has_tokens_of_turns(gemma_tokenizer):
    ids = gemma_tokenizer("<start_of_turn>user\nはい<end_of_turn>")["input_ids"]
    names = gemma_tokenizer.convert_ids_to_tokens(ids)
    assert (names[1], names[-1]) == ("<start_of_turn>", "<end_of_turn>")
    assert gemma_tokenizer.decode(ids, skip_special_tokens=True) == "user\nはい"
