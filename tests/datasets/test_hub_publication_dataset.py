"""Publishing with the real client to a hub on this computer."""

import hashlib
import json

import pytest
from hub_repositories import NO_WEIGHTS
from huggingface_hub import constants

from ja_instruct.datasets import AdapterDataset, HubPublicationDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import write_provenance
from ja_instruct.models.hub import download_model
from ja_instruct.models.publication import Publication

CHANGES = {"adapter_config.json": {"base_model_name_or_path": "google/gemma-2-27b"}}


@pytest.fixture
def hub(hub_server, monkeypatch):
    """A hub at which this process is logged in as ``me``, a member of ``our-group``."""
    hub_server.tokens["hf_me"] = set()
    hub_server.accounts["hf_me"] = ["me", "our-group"]
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    # hf_xet is a client of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub_server


def published(hub, repo_id="me/adapter"):
    return hub.repositories["model", repo_id]


@pytest.fixture
def publication(tmp_path):
    path = tmp_path / "adapter"
    (path / "templates").mkdir(parents=True)
    (path / "templates/tool.jinja").write_text("{{ tool }}", "utf-8")
    (path / "adapter_model.safetensors").write_bytes(NO_WEIGHTS)
    (path / "README.md").write_text("# カード\n", "utf-8")
    (path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/home/me/data/quantized_model", "r": 64}), "utf-8"
    )
    write_provenance(path, {"stage": "sft"})
    (path / "checkpoints").mkdir()
    (path / "checkpoints/optimizer.pt").write_bytes(b"large")
    (path / ".DS_Store").write_bytes(b"")
    return Publication(path, "Upload", {"adapter_model.safetensors": "c" * 64}, CHANGES)


@pytest.fixture
def make(tmp_path):
    def dataset(repo_id="me/adapter", **settings):
        filepath = tmp_path / "published_adapter.json"
        return HubPublicationDataset(filepath=filepath, repo_id=repo_id, **settings)

    return dataset


def test_everything_is_uploaded_and_recorded(hub, make, publication):
    dataset = make()
    assert not dataset.exists()
    dataset.save(publication)
    assert dataset.exists()
    repository = published(hub)
    assert repository.is_private
    files = repository.contents()
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ja_instruct.json",
        "templates/tool.jinja",
    }
    assert files["adapter_model.safetensors"] == NO_WEIGHTS
    assert repository.messages == ["Upload"]
    commit = repository.branches["main"]
    assert dataset.load() == {
        "repo_id": "me/adapter",
        "commit": commit,
        "url": f"{hub.uri}/me/adapter/commit/{commit}",
        "private": True,
        "weights_sha256": {"adapter_model.safetensors": "c" * 64},
    }


def test_published_copy_has_no_local_path(hub, make, publication, tmp_path):
    before = (publication.directory / "adapter_config.json").read_bytes()
    make().save(publication)
    files = published(hub).contents()
    config = json.loads(files["adapter_config.json"])
    assert config == {"base_model_name_or_path": "google/gemma-2-27b", "r": 64}
    assert (publication.directory / "adapter_config.json").read_bytes() == before
    # a downloaded copy passes the check of its checksums
    noted = json.loads(files["ja_instruct.json"])["files"]["adapter_config.json"]
    assert noted["sha256"] == hashlib.sha256(files["adapter_config.json"]).hexdigest()
    AdapterDataset(filepath=download_model("me/adapter", None)).check()


def test_directory_without_provenance_is_published_without_its_folders(hub, make, publication):
    (publication.directory / "ja_instruct.json").unlink()
    make().save(publication)
    assert set(published(hub).contents()) == {
        ".DS_Store",
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_old_weights_are_removed_and_other_files_stay(hub, make, publication):
    files = {"model-00001-of-00002.safetensors": NO_WEIGHTS, "figure.png": b""}
    hub.add("me/adapter", files)
    make().save(publication)
    files = published(hub).contents()
    assert "model-00001-of-00002.safetensors" not in files
    assert {"figure.png", "adapter_model.safetensors"} <= set(files)


def test_record_of_another_repository_does_not_count(hub, make, publication):
    make().save(publication)
    other = make("our-group/adapter")
    assert not other.exists()
    with pytest.raises(InputError, match="no record of a publication to 'our-group/adapter'"):
        other.load()


def test_record_that_was_cut_off(make, tmp_path):
    (tmp_path / "published_adapter.json").write_text('{"repo_id": "me/ad')
    assert not make().exists()
    for read in (make().check, make().load):
        with pytest.raises(InputError, match=r"published_adapter.json: not valid JSON \(line 1, "):
            read()


def test_unset_repository_is_refused_without_a_request(hub, make, publication):
    dataset = make(None)
    for call in (dataset.check_output, lambda: dataset.save(publication)):
        with pytest.raises(InputError, match=r"'repo_id' of this catalog entry .* is not set"):
            call()
    assert not hub.requests


@pytest.mark.parametrize("repo_id", ["adapter", "me/", "a/b/c", "me/日本", "me/a--b"])
def test_invalid_names_are_refused(hub, make, repo_id):
    with pytest.raises(InputError, match="not a repository name"):
        make(repo_id).check_output()


@pytest.mark.parametrize("repo_id", ["me/adapter", "our-group/adapter"])
def test_own_names_are_accepted(hub, make, repo_id):
    make(repo_id).check_output()


def test_names_of_others_are_refused(hub, make):
    with pytest.raises(InputError, match="you are logged in as me, our-group"):
        make("google/gemma").check_output()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "needs a login to the hub: run 'hf auth login'"),
        ("hf_revoked", "needs a login to the hub: run 'hf auth login'"),
        ("hf_me", "cannot be reached .ConnectError."),
    ],
)
def test_missing_login_is_refused(hub, make, publication, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    if token == "hf_me":
        hub.close()
    dataset = make()
    for call in (dataset.check_output, lambda: dataset.save(publication)):
        with pytest.raises(InputError, match=message):
            call()
    assert not hub.repositories


def test_offline_is_refused(hub, make, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be reached \(OfflineModeIsEnabled"):
        make().check_output()


@pytest.mark.parametrize("where", ["is_read_only", "is_storage_read_only"])
def test_rejected_upload_leaves_no_record(hub, make, publication, where):
    hub.add("me/adapter", {".gitattributes": b""})
    setattr(hub, where, True)
    dataset = make()
    with pytest.raises(InputError, match=r"(?s)could not be published to 'me/adapter': .*403 Forb"):
        dataset.save(publication)
    assert not dataset.exists()


def test_failure_of_xet_leaves_no_record(hub, make, publication, monkeypatch):
    """The hub here does not have its protocol."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    dataset = make()
    with pytest.raises(
        InputError, match=r"(?s)could not be published .*Run the same command again"
    ):
        dataset.save(publication)
    assert not dataset.exists()
