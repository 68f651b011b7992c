"""What the hub refuses, and what a hub that is out of reach leaves; the client is the real one."""

import json
import time

import numpy as np
import pytest
from hub_repositories import NO_WEIGHTS
from huggingface_hub import constants
from safetensors.numpy import save

from ja_instruct.datasets import ConversationsDataset, HubDataset
from ja_instruct.errors import InputError
from ja_instruct.models.hub import check_repository, download_model, module_names

FILES = {"config.json": b"{}", "model.safetensors": NO_WEIGHTS}
PAIR = '{"input": "日本の首都は?", "output": "東京です。"}\n'.encode()


@pytest.fixture
def hub(hub_server):
    """A hub with one repository of each kind, and two tokens."""
    hub_server.tokens = {"hf_member": {"o/gated", "o/private", "o/terms"}, "hf_other": set()}
    hub_server.add("o/open", FILES)
    hub_server.add("o/open", {**FILES, "config.json": b'{"v": 2}'}, branch="v2")
    hub_server.add("o/gated", FILES, is_gated=True)
    hub_server.add("o/private", FILES, is_private=True)
    for name, files in (
        ("pairs", {"train.jsonl": PAIR * 2}),
        ("terms", {"train.jsonl": PAIR}),
        ("empty", {".gitattributes": b""}),
        ("script", {"script.py": b""}),
        ("broken", {"train.jsonl": b'{"input":'}),
    ):
        hub_server.add(f"o/{name}", files, repo_type="dataset", is_gated=name == "terms")
    return hub_server


@pytest.mark.parametrize("token", ["", "hf_member"])
def test_accessible(hub, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert check_repository("o/open", None, "model")
    assert check_repository("o/open", "v2", "model")
    assert check_repository("o/open", hub.repositories["model", "o/open"].branches["v2"], "model")
    assert check_repository("o/pairs", "main", "dataset")
    if token:
        assert check_repository("o/gated", None, "model")
        assert check_repository("o/private", None, "model")
        assert check_repository("o/terms", None, "dataset")


LOGIN = "log in with 'hf auth login' (or set HF_TOKEN)"


@pytest.mark.parametrize("token", ["", "hf_other"])
@pytest.mark.parametrize(
    ("repo_type", "name", "revision", "message"),
    [
        ("model", "o/gated", None, "is gated: accept its terms at {uri}/o/gated, {login}"),
        ("dataset", "o/terms", None, "is gated: accept its terms at {uri}/datasets/o/terms, "),
        ("model", "o/private", None, "is not at {uri}/o/private, or it is private and you have no"),
        ("model", "o/absent", None, "is not at {uri}/o/absent, or it is private and you have no"),
        ("dataset", "o/absent", None, "is not at {uri}/datasets/o/absent, or it is private"),
        ("model", "o/open", "v9", "has no revision 'v9': give a branch, tag or commit that"),
        ("dataset", "o/pairs", "v9", "has no revision 'v9': give a branch, tag or commit that"),
    ],
)
def test_refused(hub, monkeypatch, token, repo_type, name, revision, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as caught:
        check_repository(name, revision, repo_type)
    expected = message.format(uri=hub.uri, login=LOGIN)
    assert f"{repo_type} '{name}' {expected}" in str(caught.value)


def test_refused_by_an_unknown_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(InputError, match=r"the hub rejects your token: log in with 'hf auth"):
        check_repository("o/open", None, "model")


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_with_a_problem(hub, status):
    hub.status = status
    with pytest.raises(
        InputError, match=rf"'o/open' cannot be reached \(HTTP {status}\).*env=demo"
    ):
        check_repository("o/open", None, "model")


def test_out_of_reach(hub, caplog):
    caplog.set_level("INFO", "ja_instruct")
    download_model("o/open", None)
    hub.close()
    assert not check_repository("o/open", None, "model")
    assert "the hub cannot be reached (ConnectError), using the local cache" in caplog.text
    with pytest.raises(InputError, match=r"cannot be reached \(ConnectError\).*--env=demo"):
        check_repository("o/gated", None, "model")


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_name_that_is_not_one(repo_type):
    with pytest.raises(InputError, match="'o/o/o': not a name of a repository; write owner/name"):
        check_repository("o/o/o", None, repo_type)


class TestDownload:
    """The client reads 10 MB at a time, and goes on after those that it has."""

    CONTENT = NO_WEIGHTS + bytes(range(256)) * 400

    @pytest.fixture
    def model(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        hub.add("o/large", {"model.safetensors": self.CONTENT})
        return "o/large"

    def test_goes_on_where_the_connection_broke(self, hub, model):
        hub.breaks["model.safetensors"] = [30_500, 20_700]
        snapshot = download_model(model, None)
        assert (snapshot / "model.safetensors").read_bytes() == self.CONTENT
        asked = [one.range for one in hub.requests if one.path.startswith("/lfs/")]
        assert asked == [None, "bytes=30000-", "bytes=50000-"]

    def test_gives_up_and_begins_anew_in_the_next_run(self, hub, model):
        hub.breaks["model.safetensors"] = [0] * 6
        with pytest.raises(InputError, match=r"'o/large' could not be downloaded \(.*--env=demo"):
            download_model(model, None)
        snapshot = download_model(model, None)
        assert (snapshot / "model.safetensors").read_bytes() == self.CONTENT


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("empty", {}, "doesn't contain any data files"),
        ("script", {}, "Dataset scripts are no longer supported"),
        ("pairs", {"split": "test"}, "it has the splits train"),
        ("pairs", {"name": "zh"}, "BuilderConfig 'zh' not found"),
        ("pairs", {"data_files": "x.jsonl"}, "x.jsonl"),
    ],
)
def test_data_set_that_lacks_what_the_catalog_names(hub, name, arguments, reason):
    dataset = HubDataset(dataset_name=f"o/{name}", dataset_kwargs=arguments)
    for use in (dataset.check, dataset.load):
        with pytest.raises(InputError) as caught:
            use()
        assert str(caught.value).startswith(f"dataset 'o/{name}' cannot be loaded with ")
        assert str(caught.value).endswith("correct its catalog entry")
        if use == dataset.check:
            assert reason in str(caught.value)


@pytest.mark.parametrize("split", [None, "train", "all", "train[:50%]"])
def test_data_set(hub, split):
    dataset = HubDataset(dataset_name="o/pairs", dataset_kwargs={"split": split} if split else {})
    dataset.check()
    loaded = dataset.load()
    assert (loaded if split else loaded["train"])[0]["output"] == "東京です。"


def test_data_set_that_cannot_be_read(hub):
    with pytest.raises(InputError, match=r"'o/broken' cannot be loaded with .*JSON parse error"):
        HubDataset(dataset_name="o/broken", dataset_kwargs={"split": "train"}).load()


def test_conversations_of_a_data_set(hub):
    columns = {"columns": {"instruction": "input", "response": "output"}}
    dataset = ConversationsDataset(sources=[{"hub": "o/pairs", "split": "train", **columns}])
    dataset.check_records()
    assert dataset.load()[0]["conversations"][1]["content"] == "東京です。"
    refused = ConversationsDataset(sources=[{"hub": "o/pairs", "split": "test", **columns}])
    for use in (refused.check_records, refused.load):
        with pytest.raises(
            InputError, match="dataset 'o/pairs' cannot be loaded with split='test'"
        ):
            use()


def test_unreachable_hub_with_a_cached_model(hub_cache):
    snapshot = hub_cache / "models--google--gemma-2-27b" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({}), "utf-8")
    check_repository("google/gemma-2-27b", None, "model")
    with pytest.raises(InputError, match="cannot be reached"):
        check_repository("google/gemma-2-9b", None, "model")


class TestModuleNames:
    def test_of_the_index(self, hub):
        weights = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.bias"]
        index = json.dumps({"weight_map": dict.fromkeys(weights, "model-00001.safetensors")})
        hub.add("o/shards", {"model.safetensors.index.json": index.encode()})
        assert module_names("o/shards", None) == {"model.layers.0.mlp.up_proj", "model.norm"}

    def test_of_the_only_file(self, hub):
        content = save({"lm_head.weight": np.zeros((3, 2), np.float32)})
        hub.add("o/one", {"model.safetensors": content})
        assert module_names("o/one", "main") == {"lm_head"}

    @pytest.mark.parametrize("files", [{}, {"model.safetensors": b"not safetensors"}])
    def test_unknown_without_both(self, hub, files):
        hub.add("o/none", {"config.json": b"{}", **files})
        assert module_names("o/none", None) is None

    def test_unknown_offline(self, hub_cache):
        assert module_names("google/gemma-2-2b", None) is None
