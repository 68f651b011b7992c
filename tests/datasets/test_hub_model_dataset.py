import json
from pathlib import Path

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
def test_what_is_not_cached_is_not_downloaded(repository, repo_id, revision, monkeypatch):
    import httpx

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(httpx.Client, "send", refuse)
    assert HubModelDataset(repo_id=repo_id, revision=revision).peek_config() is None
