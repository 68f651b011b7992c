import json
import shutil
import time

import httpx
import pytest

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
    remedy = f"run 'hf cache rm model/{repository}', and run again to download it anew"
    assert dataset.load().path == snapshot
    for name, read in (("tokenizer.json", dataset.load), ("config.json", dataset.check)):
        (snapshot / name).write_text("{", "utf-8")
        with pytest.raises(InputError, match=f"{snapshot / name}: not valid JSON .*; {remedy}"):
            read()


@pytest.mark.usefixtures("repository")
class TestHub:
    """The hub is faked at HTTP."""

    def test_only_the_configuration_is_fetched_once(self, model_on_the_hub):
        requests = model_on_the_hub({"model_type": "llama"}, {})
        dataset = HubModelDataset(repo_id="owner/other")
        assert dataset.peek_config() == {"model_type": "llama"}
        assert {path for _, path in requests} == {"/owner/other/resolve/main/config.json"}
        count = len(requests)
        assert dataset.peek_config() == {"model_type": "llama"}
        assert len(requests) == count

    @pytest.mark.parametrize("status", [401, 403, 404, 500])
    def test_there_is_no_configuration_if_the_hub_refuses(self, hub, status, monkeypatch):
        # between the client's attempts
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        hub(lambda request: httpx.Response(status))
        assert HubModelDataset(repo_id="owner/other").peek_config() is None

    @pytest.fixture
    def model_on_the_hub(self, hub):
        """A function that serves a configuration and types of weights, and returns the requests."""

        def answer(config, types):
            content = json.dumps(config).encode()
            info = {
                "id": "owner/other",
                "sha": "c" * 40,
                "siblings": [],
                "safetensors": {"parameters": types, "total": sum(types.values())},
            }

            def respond(request):
                if request.url.path.endswith("/config.json"):
                    headers = {
                        "ETag": '"0123"',
                        "X-Repo-Commit": "c" * 40,
                        "Content-Length": str(len(content)),
                    }
                    return httpx.Response(200, headers=headers, content=content)
                return httpx.Response(200, json=info)

            return hub(respond)

        return answer

    def test_16_bit_model_is_accepted(self, model_on_the_hub):
        model_on_the_hub({"model_type": "gemma2"}, {"BF16": 100, "F32": 20})
        dataset = HubModelDataset(repo_id="owner/other")
        dataset.check()
        assert dataset.parameter_count() == 120

    @pytest.mark.parametrize(
        ("config", "types", "message"),
        [
            (
                {"quantization_config": {"quant_method": "bitsandbytes"}},
                {"BF16": 1, "U8": 9},
                r"'owner/other' on the hub is quantized already \(bitsandbytes\)",
            ),
            ({}, {"BF16": 1, "U8": 9}, "'owner/other' on the hub has weights of type U8, not only"),
            ({}, {"F8_E4M3": 9, "F32": 1}, "has weights of type F8_E4M3, not only BF16, F16, F32"),
        ],
    )
    def test_quantized_model_is_refused_before_any_weights_are_fetched(
        self, model_on_the_hub, config, types, message
    ):
        requests = model_on_the_hub(config, types)
        with pytest.raises(InputError, match=f"{message}.*product of this project alone"):
            HubModelDataset(repo_id="owner/other").check()
        assert not [path for _, path in requests if "safetensors" in path]


def test_cached_model_of_8_bits_is_refused(repository, hub_cache):
    import torch
    from safetensors.torch import save_file

    cached = hub_cache / "models--owner--name/snapshots" / COMMITS["main"]
    save_file({"weight": torch.zeros(2, 2, dtype=torch.int8)}, cached / "model.safetensors")
    with pytest.raises(InputError, match=r"'owner/name': 'weight' in .* has weights of type I8"):
        HubModelDataset(repo_id=repository).load()
