import json
import shutil
import time

import numpy as np
import pytest
from hub_repositories import NO_WEIGHTS, HubFile
from safetensors.numpy import save

from ja_instruct.datasets import HubModelDataset
from ja_instruct.errors import InputError

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def repository(hub_cache):
    """A repository with the configurations of two revisions in the local cache."""
    cached = hub_cache / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    for revision, commit in COMMITS.items():
        (cached / "refs" / revision).write_text(commit)
        (cached / "snapshots" / commit).mkdir(parents=True)
        config = {"model_type": "gemma2", "revision": revision}
        (cached / "snapshots" / commit / "config.json").write_text(json.dumps(config), "utf-8")
    return "owner/name"


@pytest.mark.parametrize(
    ("revision", "expected"), [(None, "main"), ("main", "main"), ("v2", "v2"), ("b" * 40, "v2")]
)
def test_configuration_comes_from_the_cache(repository, revision, expected):
    dataset = HubModelDataset(repo_id=repository, revision=revision)
    assert dataset.peek_config() == {"model_type": "gemma2", "revision": expected}


@pytest.mark.parametrize(("repo_id", "revision"), [("owner/name", "v3"), ("owner/other", None)])
def test_offline_without_a_cache_there_is_no_configuration(repository, repo_id, revision):
    assert HubModelDataset(repo_id=repo_id, revision=revision).peek_config() is None


def test_damaged_file_of_the_cache_is_named_with_its_remedy(repository, hub_cache, tiny_gemma2):
    dataset = HubModelDataset(repo_id=repository)
    snapshot = hub_cache / "models--owner--name/snapshots" / COMMITS["main"]
    shutil.copytree(tiny_gemma2.path, snapshot, dirs_exist_ok=True)
    remedy = f"run 'hf cache rm model/{repository}', then run again to download it"
    assert dataset.load().path == snapshot
    for name, read in (("tokenizer.json", dataset.load), ("config.json", dataset.check)):
        (snapshot / name).write_text("{", "utf-8")
        with pytest.raises(InputError, match=f"{snapshot / name}: not valid JSON .*; {remedy}"):
            read()


class TestHub:
    FILES = {"tokenizer.json": b"{}", "config.json": b'{"model_type": "llama"}'}  # noqa: RUF012

    @pytest.fixture
    def add(self, hub_server):
        """A function that adds a model of weights of these types to the hub."""

        def add(config=None, **types):
            weights = {f"weight {name}": np.zeros(3, kind) for name, kind in types.items()}
            files = {**self.FILES, "model.safetensors": save(weights)}
            if config is not None:
                files["config.json"] = json.dumps(config).encode()
            hub_server.add("owner/name", files)
            return HubModelDataset(repo_id="owner/name")

        return add

    def test_only_the_configuration_is_fetched_once(self, hub_server, add):
        dataset = add(a=np.float16)
        assert dataset.peek_config() == {"model_type": "llama"}
        assert {one.path for one in hub_server.requests if "/resolve/" in one.path} == {
            "/owner/name/resolve/main/config.json"
        }
        count = len(hub_server.requests)
        assert dataset.peek_config() == {"model_type": "llama"}
        assert len(hub_server.requests) == count

    @pytest.mark.parametrize("status", [401, 403, 404, 500, None])
    def test_there_is_no_configuration_if_the_hub_refuses(self, hub_server, status, monkeypatch):
        """None: it is out of reach. The client's own retries would take half a minute."""
        pauses = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        if status is None:
            hub_server.close()
        else:
            hub_server.status = status
        assert HubModelDataset(repo_id="owner/other").peek_config() is None
        assert not pauses

    def test_16_bit_model_is_accepted(self, add):
        dataset = add(a=np.float16, b=np.float32)
        dataset.check()
        assert dataset.parameter_count() == 6

    def test_size_of_the_download_is_that_of_the_listed_files(self, hub_server, add):
        """24 shards of a model in float32, of which the hub lists the sizes."""
        shard = 4_537_854_720
        shards = {f"model-{n:05}-of-00024.safetensors": HubFile(None, shard) for n in range(1, 25)}
        other = {"pytorch_model.bin": HubFile(None, shard), "README.md": HubFile(None, 1000)}
        weights = {"F32": 27_227_128_320}
        hub_server.add("owner/name", {**self.FILES, **shards, **other}, weights=weights)
        dataset = HubModelDataset(repo_id="owner/name")
        dataset.check()
        small = sum(map(len, self.FILES.values()))
        # the check has downloaded the configuration
        assert dataset.pending_download_bytes() == 24 * shard + small - len(
            self.FILES["config.json"]
        )
        assert dataset.parameter_count() == 27_227_128_320
        assert dataset.weights_bytes() == 108_908_513_280

    def test_multimodal_model_without_a_language_model_is_refused(self, add):
        """BLIP's text model is a BERT."""
        dataset = add({"model_type": "blip", "text_config": {"hidden_size": 64}}, a=np.float16)
        with pytest.raises(InputError, match=r"of this 'blip' is a 'blip_text_model', which tran"):
            dataset.check()
        gemma3 = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
        add(gemma3, a=np.float16).check()

    @pytest.mark.parametrize(
        ("files", "lacking"),
        [
            (
                ["config.json", "pytorch_model.bin", "tokenizer.json"],
                r"no \*\.safetensors \(it has",
            ),
            (
                ["model.gguf"],
                r"no config\.json, no \*\.safetensors, no tokenizer \(it has model.gguf",
            ),
            (["config.json", "original/model.safetensors", "vocab.txt"], r"no \*\.safetensors "),
            ([], r"\(it has no files\)"),
        ],
    )
    def test_model_without_the_files_is_refused(self, hub_server, files, lacking):
        hub_server.add("owner/name", dict.fromkeys(files, NO_WEIGHTS))
        with pytest.raises(InputError, match=rf"'owner/name' on the hub has .*{lacking}"):
            HubModelDataset(repo_id="owner/name").check()

    def test_index_of_files_that_are_missing(self, hub_server):
        shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
        index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
        files = {**self.FILES, "model.safetensors.index.json": json.dumps(index).encode()}
        hub_server.add("owner/half", {**files, shards[0]: NO_WEIGHTS})
        with pytest.raises(InputError, match=f"lists 1 file.* such as {shards[1]}; choose another"):
            HubModelDataset(repo_id="owner/half").check()
        hub_server.add("owner/name", {**files, **dict.fromkeys(shards, NO_WEIGHTS)})
        HubModelDataset(repo_id="owner/name").check()

    @pytest.mark.parametrize(
        ("config", "types", "message"),
        [
            (
                {"quantization_config": {"quant_method": "bitsandbytes"}},
                {"a": np.uint8},
                r"'owner/name' on the hub is quantized already \(bitsandbytes\)",
            ),
            ({}, {"a": np.uint8, "b": np.float16}, "has weights of type U8, not only BF16"),
            (
                {},
                {"a": np.int8, "b": np.float32},
                "has weights of type I8, not only BF16, F16, F32",
            ),
        ],
    )
    def test_quantized_model_is_refused_before_any_weights_are_fetched(
        self, hub_server, add, config, types, message
    ):
        dataset = add(config, **types)
        with pytest.raises(InputError, match=f"{message}.*product of this project alone"):
            dataset.check()
        assert not [one for one in hub_server.requests if "safetensors" in one.path]


def test_cached_model_of_8_bits_is_refused(repository, hub_cache):
    import torch
    from safetensors.torch import save_file

    cached = hub_cache / "models--owner--name/snapshots" / COMMITS["main"]
    save_file({"weight": torch.zeros(2, 2, dtype=torch.int8)}, cached / "model.safetensors")
    with pytest.raises(InputError, match=r"'owner/name': 'weight' in .* has weights of type I8"):
        HubModelDataset(repo_id=repository).load()
