import pytest

from ja_instruct.datasets import GGUFConverterDataset, GGUFFileDataset
from ja_instruct.errors import InputError
from ja_instruct.models.gguf import GGUFConversion

WRITES = """
import argparse, os
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype")
arguments = parser.parse_args()
words = [arguments.outtype, arguments.model.name, os.environ["HF_HUB_OFFLINE"]]
arguments.outfile.write_text("GGUF" + " ".join(words))
"""
FAILS = "print('loading'); raise SystemExit('Model Gemma9 is not supported')"
HALF = "import sys; open(sys.argv[3], 'w').write('GG'); raise SystemExit(3)"
FULL = "import errno; raise OSError(errno.ENOSPC, 'No space left on device')"
NOTHING = "print('done')"


@pytest.fixture
def dataset(tmp_path):
    return GGUFFileDataset(filepath=tmp_path / "out/model.gguf")


@pytest.fixture
def conversion(tmp_path):
    """A function to a conversion by a script with the given code."""

    def with_converter(code):
        (tmp_path / "convert_hf_to_gguf.py").write_text(code)
        converter = GGUFConverterDataset(llama_cpp_dir=tmp_path)
        converter.check()
        return GGUFConversion(tmp_path / "merged_model", converter.load(), "bf16")

    return with_converter


def test_converter_writes_the_file(dataset, conversion, tmp_path):
    assert not dataset.exists()
    dataset.save(conversion(WRITES))
    assert dataset.exists()
    assert dataset.load() == tmp_path / "out/model.gguf"
    assert dataset.load().read_text() == "GGUFbf16 merged_model 1"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (FAILS, r"exit status 1.*(?s:.)*loading\nModel Gemma9 is not supported"),
        (HALF, "exit status 3"),
        (NOTHING, "exit status 0"),
        (FULL, r"/model\.gguf cannot be written: no room is left on the disk, "),
    ],
)
def test_failure_shows_the_output_and_keeps_the_old(dataset, conversion, code, message, tmp_path):
    dataset.save(conversion(WRITES))
    with pytest.raises(InputError, match=message):
        dataset.save(conversion(code))
    assert dataset.load().read_text().startswith("GGUF")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        (None, "'llama_cpp_dir' of this catalog entry is not set"),
        ("elsewhere", r"no convert_hf_to_gguf\.py in llama_cpp_dir elsewhere"),
    ],
)
def test_missing_converter_is_refused(directory, message):
    dataset = GGUFConverterDataset(llama_cpp_dir=directory)
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=message):
            read()


def test_other_files_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"no such file; .*--pipeline=gguf_export"):
        dataset.load()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.gguf").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a GGUF file"):
        dataset.load()
