import pytest

from ja_instruct.datasets import GGUFFileDataset
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
said = [arguments.outtype, arguments.model.name, os.environ["HF_HUB_OFFLINE"]]
arguments.outfile.write_text("GGUF" + " ".join(said))
"""
FAILS = "print('loading'); raise SystemExit('Model Gemma9 is not supported')"
HALF = "import sys; open(sys.argv[3], 'w').write('GG'); raise SystemExit(3)"
NOTHING = "print('done')"


@pytest.fixture
def conversion(tmp_path):
    (tmp_path / "merged_model").mkdir()
    return GGUFConversion(tmp_path / "merged_model", "bf16")


@pytest.fixture
def make(tmp_path):
    """A function to a dataset with a converter that does something else."""

    def with_converter(code):
        directory = tmp_path / "llama.cpp"
        directory.mkdir(exist_ok=True)
        (directory / "convert_hf_to_gguf.py").write_text(code)
        return GGUFFileDataset(filepath=tmp_path / "out/model.gguf", llama_cpp_dir=directory)

    return with_converter


def test_converter_is_run(make, conversion, tmp_path):
    dataset = make(WRITES)
    assert not dataset.exists()
    dataset.check_output()
    dataset.save(conversion)
    assert dataset.exists()
    assert dataset.load() == tmp_path / "out/model.gguf"
    assert dataset.load().read_text() == "GGUFbf16 merged_model 1"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (FAILS, r"exit status 1.*(?s:.)*loading\nModel Gemma9 is not supported"),
        (HALF, "exit status 3"),
        (NOTHING, "exit status 0"),
    ],
)
def test_failure_shows_what_it_said_and_keeps_the_old(make, conversion, code, message, tmp_path):
    make(WRITES).save(conversion)
    with pytest.raises(InputError, match=message):
        make(code).save(conversion)
    assert make(code).load().read_text().startswith("GGUF")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]


def test_missing_converter_is_told_before(tmp_path, conversion):
    filepath = tmp_path / "model.gguf"
    unset = GGUFFileDataset(filepath=filepath)
    for ask in (unset.check_output, lambda: unset.save(conversion)):
        with pytest.raises(InputError, match="'llama_cpp_dir' of this catalog entry is not set"):
            ask()
    wrong = GGUFFileDataset(filepath=filepath, llama_cpp_dir=tmp_path)
    with pytest.raises(InputError, match=r"no convert_hf_to_gguf\.py in llama_cpp_dir"):
        wrong.check_output()


def test_other_files_are_refused(tmp_path):
    dataset = GGUFFileDataset(filepath=tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"no such file; .*--pipeline=gguf_export"):
        dataset.load()
    (tmp_path / "model.gguf").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a GGUF file"):
        dataset.load()
