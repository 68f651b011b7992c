import json
import logging
import re
import time

import pytest
from huggingface_hub import constants
from kedro.io import AbstractDataset, DataCatalog, DatasetError, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ja_instruct.datasets.tokenizer_dataset import TokenizerDataset
from ja_instruct.errors import InputError

REPOSITORY = "google/gemma-2-27b"
COMMIT = "a" * 40
TEXT = "日本の首都"
IDS = [3, 4, 5]


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of words that puts <bos> before a text."""
    vocabulary = {"<unk>": 0, "<bos>": 1, "<pad>": 2, "日本": 3, "の": 4, "首都": 5}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=50)
    )
    tokenizer.model.continuing_subword_prefix = ""
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


@pytest.fixture
def directory(tmp_path):
    """A directory with a tokenizer and nothing else."""
    (tmp_path / "model").mkdir()
    make_tokenizer().save(str(tmp_path / "model/tokenizer.json"))
    return tmp_path / "model"


def ids_of(dataset):
    return dataset.load().encode(TEXT, add_special_tokens=False).ids


def assert_unavailable(message, **source):
    """Assert that ``check`` and ``load`` raise the error, and that an optional one is None."""
    dataset = TokenizerDataset(**source)
    for read in (dataset.check, dataset.load):
        with pytest.raises(InputError, match=message):
            read()
    optional = TokenizerDataset(**source, required=False)
    optional.check()
    assert optional.load() is None


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("name", [".", "tokenizer.json"])
def test_from_a_directory_or_its_file(directory, name, required, caplog):
    dataset = TokenizerDataset(filepath=directory / name, required=required)
    assert dataset.exists()
    dataset.check()
    assert ids_of(dataset) == IDS
    assert dataset.load().encode(TEXT).ids == [1, *IDS]
    assert not caplog.records


def test_it_is_read_once_until_it_is_released(directory):
    dataset = TokenizerDataset(filepath=directory)
    tokenizer = dataset.load()
    (directory / "tokenizer.json").unlink()
    assert dataset.load() is tokenizer
    dataset.release()
    with pytest.raises(InputError, match="no such file"):
        dataset.load()


def test_counts_are_those_of_the_text_alone(directory):
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8, pad_id=2, pad_token="<pad>")
    tokenizer.save(str(directory / "tokenizer.json"))
    assert len(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT)) == 8
    assert ids_of(TokenizerDataset(filepath=directory)) == IDS


def test_transformers_counts_the_same(tiny_gemma2):
    texts = ["日本の首都はどこですか。", "", "改行\n\nと　空白", "<end_of_turn>", "🍣 sushi"]
    tokenizer = TokenizerDataset(filepath=tiny_gemma2.path).load()
    expected = tiny_gemma2.load_tokenizer()(
        texts, add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    assert len(expected[3]) > 1
    found = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in found] == expected


def test_missing_file(tmp_path, caplog):
    assert not TokenizerDataset(filepath=tmp_path / "model").exists()
    message = r"model/tokenizer\.json: no such file; .*save_pretr"
    assert_unavailable(message, filepath=tmp_path / "model")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No lengths in tokens" in record.getMessage()
    assert "model/tokenizer.json: no such file" in record.getMessage()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "1.0"', b"\xff\xfe", b"[]"])
def test_file_that_is_not_a_tokenizer(directory, content):
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer .*again"):
        TokenizerDataset(filepath=directory).load()


@pytest.mark.parametrize("there", [True, False])
def test_a_node_gets_the_tokenizer_or_none(directory, there):
    filepath = directory if there else directory / "missing"
    dataset = TokenizerDataset(filepath=filepath, required=False)
    catalog = DataCatalog({"tokenizer": dataset, "known": MemoryDataset()})
    step = node(lambda tokenizer: {"known": tokenizer is not None}, "tokenizer", "known", name="a")
    SequentialRunner().run(pipeline([step]), catalog)
    assert catalog.load("known") == {"known": there}


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"repo_id": REPOSITORY, "filepath": "model"},
        {"filepath": "model", "model": {"type": "MemoryDataset"}},
        {"filepath": "model", "revision": "main"},
        {"revision": "main"},
    ],
)
def test_source_is_exactly_one(sources):
    with pytest.raises(InputError, match="give exactly one of the three"):
        TokenizerDataset(**sources, required=False)


class TestModel:
    """The tokenizer of another dataset's model."""

    def entry(self, path):
        return {
            "type": "ja_instruct.datasets.ModelDirectoryDataset",
            "filepath": str(path),
            "metadata": {"kedro-viz": {"layer": "raw"}},
        }

    def test_there(self, directory):
        (directory / "config.json").write_text("{}", "utf-8")
        save_file({}, directory / "model.safetensors")
        entry = {
            "type": "ja_instruct.datasets.tokenizer_dataset.TokenizerDataset",
            "model": self.entry(directory),
        }
        dataset = AbstractDataset.from_config("tokenizer", entry)
        assert dataset.exists()
        dataset.check()
        assert ids_of(dataset) == IDS
        assert dataset._describe()["model"]["filepath"] == str(directory)
        (directory / "tokenizer.json").unlink()
        with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
            TokenizerDataset(model=self.entry(directory)).load()

    def test_missing(self, tmp_path, caplog):
        entry = self.entry(tmp_path / "missing")
        assert not TokenizerDataset(model=entry).exists()
        assert_unavailable("missing: no such model directory", model=entry)
        assert "no such model directory" in caplog.text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"(?s)model of the tokenizer cannot be loaded: .*Expecting"),
            ("{}", "JSONDataset loads a dict, not a model directory"),
        ],
    )
    def test_other_dataset(self, tmp_path, content, message):
        (tmp_path / "a.json").write_text(content, "utf-8")
        entry = {"type": "json.JSONDataset", "filepath": str(tmp_path / "a.json")}
        with pytest.raises(InputError, match=message):
            TokenizerDataset(model=entry).load()
        assert TokenizerDataset(model=entry, required=False).load() is None

    def test_unknown_dataset(self):
        with pytest.raises(DatasetError, match="NoSuchDataset"):
            TokenizerDataset(model={"type": "ja_instruct.datasets.NoSuchDataset"})

    def test_name_instead_of_an_entry(self):
        with pytest.raises(InputError, match=r"'model' is 'base_model': write the whole .*entry"):
            TokenizerDataset(model="base_model")

    def test_hub_model_would_be_downloaded_whole(self):
        entry = {"type": "ja_instruct.datasets.HubModelDataset", "repo_id": REPOSITORY}
        with pytest.raises(InputError, match=r"downloaded whole: give .* 'repo_id' instead"):
            TokenizerDataset(model=entry)

    @pytest.mark.demo
    def test_packaged_model_is_checked_without_converting_it(
        self, tmp_path, read_configuration, caplog
    ):
        entry = read_configuration("demo")["catalog"]["base_model"]
        entry |= {"filepath": str(tmp_path / "m"), "gguf_filepath": str(tmp_path / "m.gguf")}
        TokenizerDataset(model=entry).check()
        assert list(tmp_path.iterdir()) == []


class TestHub:
    @pytest.fixture
    def hub(self, hub_server):
        """A hub that has the repository, with a branch."""
        for branch in ("main", "v1"):
            files = {
                "config.json": json.dumps({"branch": branch}).encode(),
                "tokenizer.json": make_tokenizer().to_str().encode(),
            }
            hub_server.add(REPOSITORY, files, branch=branch)
        hub_server.add("owner/without", {"config.json": b"{}"})
        return hub_server

    @staticmethod
    def downloads(hub):
        return [one.path for one in hub.requests if one.method == "GET" and "/resolve/" in one.path]

    def test_tokenizer_alone_is_downloaded(self, hub, hub_cache, monkeypatch):
        dataset = TokenizerDataset(repo_id=REPOSITORY)
        assert not dataset.exists()
        dataset.check()
        assert not hub_cache.exists()
        assert ids_of(dataset) == IDS
        assert self.downloads(hub) == [f"/{REPOSITORY}/resolve/main/tokenizer.json"]
        assert [path.name for path in hub_cache.glob("*/snapshots/*/*")] == ["tokenizer.json"]

        assert dataset.exists()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        dataset.check()
        assert ids_of(TokenizerDataset(repo_id=REPOSITORY)) == IDS

    def test_cached_and_the_hub_refuses(self, hub):
        TokenizerDataset(repo_id=REPOSITORY).load()
        hub.repositories["model", REPOSITORY].is_gated = True
        dataset = TokenizerDataset(repo_id=REPOSITORY)
        dataset.check()
        assert ids_of(dataset) == IDS

    def test_revision(self, hub):
        assert ids_of(TokenizerDataset(repo_id=REPOSITORY, revision="v1")) == IDS
        assert self.downloads(hub) == [f"/{REPOSITORY}/resolve/v1/tokenizer.json"]
        assert not TokenizerDataset(repo_id=REPOSITORY).exists()

    @pytest.mark.parametrize(
        ("change", "source", "message"),
        [
            ("gated", {}, "is gated: accept its terms"),
            ("", {"repo_id": "owner/absent"}, "or it is private and you have no access"),
            ("", {"revision": "v9"}, "has no revision 'v9'"),
            ("broken", {}, "cannot be reached"),
            ("", {"repo_id": "owner/without"}, r"has no tokenizer\.json on the hub: .*'filepath'"),
        ],
    )
    def test_refusing(self, hub, change, source, message, caplog):
        hub.repositories["model", REPOSITORY].is_gated = change == "gated"
        hub.status = 500 if change == "broken" else 200
        assert_unavailable(message, **{"repo_id": REPOSITORY, **source})
        (record,) = [record for record in caplog.records if record.name.startswith("ja_instruct")]
        assert re.search(message, record.getMessage())

    def test_optional_one_is_not_requested_by_check(self, hub):
        TokenizerDataset(repo_id=REPOSITORY, required=False).check()
        assert not hub.requests

    def test_download_that_breaks_off(self, hub, monkeypatch):
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        hub.breaks["tokenizer.json"] = [10] * 6
        with pytest.raises(InputError, match=r"(?s)could not be downloaded .*'filepath'"):
            TokenizerDataset(repo_id=REPOSITORY).load()

    def test_unreachable(self, hub, monkeypatch):
        """The client's own retries would take half a minute."""
        pauses = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        hub.close()
        with pytest.raises(InputError, match=r"cannot be reached \(ConnectError\)"):
            TokenizerDataset(repo_id=REPOSITORY).load()
        assert not pauses

    def test_offline_with_another_part_of_the_repository_cached(self, hub_cache):
        snapshot = hub_cache / "models--google--gemma-2-27b" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({}), "utf-8")
        message = r"its tokenizer\.json is not in the local cache"
        assert_unavailable(message, repo_id=REPOSITORY)

    def test_offline_and_nothing_cached(self):
        assert_unavailable("offline mode is on", repo_id=REPOSITORY)

    def test_invalid_name(self):
        message = "'google/gemma/2': not a repository name"
        assert_unavailable(message, repo_id="google/gemma/2")
