"""A damaged file is named with its remedy, before the first node or when it is loaded."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from corruptions import BYTES, CORRUPTIONS
from kedro.io import DataCatalog

from ja_instruct.datasets import AdapterDataset, ModelDirectoryDataset
from ja_instruct.errors import InputError
from ja_instruct.models.checksums import file_checksums, sha256_of
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.pipelines.sft.checkpoints import last_checkpoint
from ja_instruct.retrieval.colbert_checkpoint import load_retriever

pytestmark = pytest.mark.slow

MODEL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
OF_STAGE = "kedro run --pipeline={}' "


def use_base_model(model, _catalog):
    model.load_config()
    model.load_tokenizer()
    model.load_model()


def use_quantized_model(model, _catalog):
    load_nf4_model(model, "cpu")
    model.load_tokenizer()


def use_adapter(adapter, catalog):
    adapter.load_adapter(load_nf4_model(catalog.load("quantized_model"), "cpu"))
    adapter.load_tokenizer()


USES = {
    "base_model": use_base_model,
    "quantized_model": use_quantized_model,
    "adapter": use_adapter,
    "retriever_checkpoint": lambda checkpoint, _: load_retriever(checkpoint.directory),
}


@dataclass(frozen=True)
class File:
    """A file of a dataset in the catalog of ``test``, and the remedy that its errors end with."""

    dataset: str
    name: str
    remedy: str
    corruptions: dict = None

    def __str__(self):
        return f"{self.dataset}/{self.name}"


FILES = [
    *(File("base_model", name, "download the model") for name in MODEL),
    *(
        File("quantized_model", name, OF_STAGE.format("quantization"))
        for name in (*MODEL, "ja_instruct.json")
    ),
    *(
        File("adapter", name, OF_STAGE.format("sft"))
        for name in ("adapter_config.json", "ja_instruct.json", *MODEL[2:])
    ),
    *(
        File("retriever_checkpoint", name, "checkpoint")
        for name in ("config.json", "artifact.metadata", *MODEL[2:])
    ),
    File("retrieval_index", "index.json", "kedro run --pipelines=rag_index"),
    File("retrieval_index", "embeddings.safetensors", "kedro run --pipelines=rag_index", BYTES),
    File("answer_store", "", "move it away"),
]
# an answer store with one of these has answers left
USABLE = {
    ("answer_store", name)
    for name in ("truncated", "empty", "Shift_JIS", "not UTF-8", "a byte order mark")
}
CASES = [
    pytest.param(file, name, id=f"{file}-{name}")
    for file in FILES
    for name in file.corruptions or CORRUPTIONS
    if (file.dataset, name) not in USABLE
]


@pytest.fixture(scope="module")
def finished(finished_project, tmp_path_factory):
    """A copy of the finished project for this module."""
    copy = tmp_path_factory.mktemp("corrupt") / "project"
    return shutil.copytree(finished_project, copy, symlinks=True)


@pytest.fixture
def catalog(finished, read_configuration, monkeypatch):
    """The catalog of ``test``, whose paths are below the working directory."""
    monkeypatch.chdir(finished)
    return DataCatalog.from_config(read_configuration("test")["catalog"])


@pytest.fixture
def corrupt():
    """A function that corrupts a file, which is restored after the test."""
    saved = []

    def run(path, name):
        saved.append((path, path.read_bytes()))
        CORRUPTIONS[name](path)

    yield run
    for path, content in saved:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(content)


def path_of(catalog, file):
    return Path(catalog.get(file.dataset)._filepath) / file.name


def use(catalog, name):
    dataset = catalog.get(name)
    dataset.check()
    loaded = dataset.load()
    USES.get(name, lambda *_: None)(loaded, catalog)
    return loaded


@pytest.mark.parametrize("name", sorted({file.dataset for file in FILES}))
def test_undamaged_files_are_used(catalog, name):
    use(catalog, name)


@pytest.mark.parametrize(("file", "name"), CASES)
def test_damaged_file_is_named_with_its_remedy(catalog, corrupt, file, name):
    corrupt(path_of(catalog, file), name)
    with pytest.raises(InputError) as caught:
        use(catalog, file.dataset)
    message = str(caught.value)
    assert str(path_of(catalog, file)) in message
    assert file.remedy in message
    assert "\n" not in message


def test_every_file_of_a_directory_is_tested(catalog):
    known = {str(file) for file in FILES}
    for dataset in {file.dataset for file in FILES} - {"answer_store"}:
        for path in Path(catalog.get(dataset)._filepath).iterdir():
            if path.suffix in (".json", ".metadata"):
                assert f"{dataset}/{path.name}" in known


@pytest.mark.parametrize(
    ("dataset", "name", "pipeline"),
    [
        ("base_model", "config.json", "quantization"),
        ("base_model", "tokenizer.json", "quantization"),
        ("quantized_model", "config.json", "sft"),
        ("quantized_model", "ja_instruct.json", "inference"),
        ("adapter", "adapter_config.json", "inference"),
        ("adapter", "ja_instruct.json", "inference"),
        ("retriever_checkpoint", "artifact.metadata", "rag_index"),
        ("retrieval_index", "index.json", "inference"),
        ("answer_store", "", "inference"),
    ],
)
@pytest.mark.parametrize("corruption", ["UTF-16", "other types"])
def test_run_does_not_start(
    finished, catalog, corrupt, invoke_kedro, dataset, name, pipeline, corruption
):
    path = Path(catalog.get(dataset)._filepath) / name
    corrupt(path, corruption)
    result = invoke_kedro("--env=test", f"--pipeline={pipeline}", cwd=finished)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    (problem,) = [line for line in result.output.splitlines() if line.startswith("  - ")]
    assert problem.startswith(f"  - '{dataset}': ")
    assert str(path) in problem


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_adapter_of_another_program(catalog, corrupt, tmp_path, name):
    """Without the checksums of ``ja_instruct.json``."""
    directory = shutil.copytree(catalog.get("adapter")._filepath, tmp_path / "adapter")
    (directory / "ja_instruct.json").unlink()
    dataset = AdapterDataset(filepath=directory)
    dataset.check()
    corrupt(directory / "adapter_config.json", name)
    with pytest.raises(InputError, match=rf"{directory}/adapter_config\.json.*--pipeline=sft"):
        dataset.check()


def test_field_that_peft_refuses(catalog, tmp_path):
    directory = shutil.copytree(catalog.get("adapter")._filepath, tmp_path / "adapter")
    path = directory / "adapter_config.json"
    path.write_text(path.read_text("utf-8").replace('"LORA"', '"LARO"'), "utf-8")
    adapter = ModelDirectory(directory, "adapter")
    with pytest.raises(InputError, match=f"{path} cannot be loaded .*LARO"):
        use_adapter(adapter, catalog)


@pytest.mark.parametrize("name", [*CORRUPTIONS, "no weights"])
def test_index_of_the_weights(catalog, corrupt, tmp_path, name):
    directory = shutil.copytree(catalog.get("base_model")._filepath, tmp_path / "model")
    path = directory / "model.safetensors.index.json"
    path.write_text(
        '{"metadata": {"total_size": 5}, "weight_map": {"a": "model.safetensors"}}', "utf-8"
    )
    dataset = ModelDirectoryDataset(filepath=directory)
    dataset.check()
    if name == "no weights":
        path.write_text("{}", "utf-8")
    else:
        corrupt(path, name)
    with pytest.raises(InputError, match=rf"{path}: .*download the model"):
        dataset.check()


class TestWithoutLoss:
    """What can be made again is made again, with a line in the log."""

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            *(("index.json", name) for name in CORRUPTIONS),
            *(("embeddings.safetensors", name) for name in BYTES),
        ],
    )
    def test_questions_are_encoded_again(self, catalog, corrupt, caplog, file, name):
        corrupt(Path(catalog.get("encoding_cache")._filepath) / file, name)
        with caplog.at_level(logging.INFO):
            known = use(catalog, "encoding_cache").read(
                catalog.load("retriever_checkpoint"), None, {}
            )
        assert known is None
        assert "all questions are encoded, as the cache cannot be used" in caplog.text

    @pytest.mark.parametrize("name", sorted(name for _, name in USABLE))
    def test_the_other_answers_are_kept(self, catalog, corrupt, caplog, name):
        path = Path(catalog.get("answer_store")._filepath)
        lines = path.read_bytes().splitlines(keepends=True)
        corrupt(path, name)
        damaged = path.read_bytes()
        lines_left = [line for line in damaged.splitlines(keepends=True) if line in lines]
        keeps = len(lines_left) + (name == "a byte order mark")
        assert bool(keeps) is (name != "empty")
        store = use(catalog, "answer_store")
        assert len(store) == keeps
        assert ("their answers are generated again" in caplog.text) is (
            name not in ("empty", "a byte order mark")
        )
        store.append("new", {"text": "はい"})
        assert path.read_bytes().startswith(damaged)
        assert len(use(catalog, "answer_store")) == keeps + 1

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            *(
                (file, name)
                for file in ("trainer_state.json", "adapter_config.json")
                for name in CORRUPTIONS
            ),
            *(
                (file, name)
                for file in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth")
                for name in BYTES
            ),
        ],
    )
    def test_checkpoint_is_skipped(self, finished, corrupt, caplog, file, name):
        (folder,) = (finished / "data/06_models/test/checkpoints").iterdir()
        whole = last_checkpoint(folder)
        assert whole.name == "checkpoint-4"
        corrupt(whole / file, name)
        assert last_checkpoint(folder) is None
        assert f"skipping the incomplete checkpoint {whole} (" in caplog.text

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_digests_are_computed_again(self, tmp_path, corrupt, caplog, monkeypatch, name):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
        monkeypatch.setattr("ja_instruct.models.checksums.CACHED_BYTES_MIN", 0)
        monkeypatch.setattr("ja_instruct.models.checksums.UNSETTLED_NS", -1)
        (tmp_path / "model").mkdir()
        weights = tmp_path / "model/model.safetensors"
        weights.write_bytes(b"weights")

        def compute():
            return file_checksums(weights.parent, [weights.name], "")[weights.name]["sha256"]

        compute()
        cache = tmp_path / "ja_instruct/checksums.json"
        whole = cache.read_bytes()
        corrupt(cache, name)
        with caplog.at_level(logging.INFO):
            assert compute() == sha256_of(weights)
        assert f"{cache}: " in caplog.text
        assert "digests are computed again" in caplog.text
        if not cache.is_dir():  # nothing but the time of the computation differs
            assert cache.read_bytes()[:80] == whole[:80]
