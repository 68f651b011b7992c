import json
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from ja_instruct.datasets import HubModelDataset

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A repository of which the local cache holds the configurations of two revisions."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = Path(tmp_path) / "models--owner--name"
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
def test_offline_what_is_not_cached_is_not_there(repository, repo_id, revision):
    assert HubModelDataset(repo_id=repo_id, revision=revision).peek_config() is None


class TestHub:
    """The hub's answers are made up at its boundary, HTTP."""

    @pytest.fixture
    def hub(self, repository, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

        def answer_with(respond):
            huggingface_hub.set_client_factory(
                lambda: httpx.Client(transport=httpx.MockTransport(respond))
            )

        yield answer_with
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)

    def test_configuration_is_fetched_and_nothing_else(self, hub):
        asked = []
        content = b'{"model_type": "llama"}'

        def respond(request):
            asked.append(request.url.path)
            headers = {
                "ETag": '"0123"',
                "X-Repo-Commit": "c" * 40,
                "Content-Length": str(len(content)),
            }
            return httpx.Response(200, headers=headers, content=content)

        hub(respond)
        dataset = HubModelDataset(repo_id="owner/other")
        assert dataset.peek_config() == {"model_type": "llama"}
        assert set(asked) == {"/owner/other/resolve/main/config.json"}
        count = len(asked)
        assert dataset.peek_config() == {"model_type": "llama"}
        assert len(asked) == count

    @pytest.mark.parametrize("status", [401, 403, 404, 500])
    def test_none_where_the_hub_does_not_give_it(self, hub, status):
        hub(lambda request: httpx.Response(status))
        assert HubModelDataset(repo_id="owner/other").peek_config() is None
