"""The hub's client is faked at its network calls."""

import hashlib
import json

import httpx
import huggingface_hub
import pytest
from huggingface_hub import CommitInfo, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ja_instruct.datasets import AdapterDataset, HubPublicationDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import write_provenance
from ja_instruct.models.publication import Publication

CHANGES = {"adapter_config.json": {"base_model_name_or_path": "google/gemma-2-27b"}}


def http_error(status):
    request = httpx.Request("POST", "https://huggingface.co/api")
    return HfHubHTTPError(f"{status}", response=httpx.Response(status, request=request))


class Hub(HfApi):
    """The real client above calls that keep repositories in memory, or fail."""

    def __init__(self):
        super().__init__()
        self.repositories = {}
        self.commits = []
        self.errors = {}

    def __call__(self):
        return self

    def _fail(self, what):
        if what in self.errors:
            raise self.errors[what]

    def _validate_yaml(self, content, *, repo_type=None, token=None):
        pass

    def whoami(self):
        self._fail("whoami")
        return {"name": "me", "orgs": [{"name": "our-group"}]}

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self._fail("create_repo")
        assert exist_ok
        assert repo_type == "model"
        self.repositories.setdefault(repo_id, {"private": private, "files": {}})

    def list_repo_files(self, repo_id, **kwargs):
        return list(self.repositories[repo_id]["files"])

    def create_commit(self, *, repo_id, operations, commit_message, **kwargs):
        self._fail("create_commit")
        files = self.repositories[repo_id]["files"]
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
        self.commits.append(commit_message)
        url = f"https://huggingface.co/{repo_id}/commit/{len(self.commits)}"
        return CommitInfo(url, commit_message, "", f"{len(self.commits):040x}")


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    # hf_xet is a client of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub


@pytest.fixture
def publication(tmp_path):
    path = tmp_path / "adapter"
    (path / "templates").mkdir(parents=True)
    (path / "templates/tool.jinja").write_text("{{ tool }}", "utf-8")
    (path / "adapter_model.safetensors").write_bytes(b"lora")
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
    repository = hub.repositories["me/adapter"]
    assert repository["private"] is True
    files = repository["files"]
    assert set(files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ja_instruct.json",
        "templates/tool.jinja",
    }
    assert files["adapter_model.safetensors"] == b"lora"
    assert hub.commits == ["Upload"]
    assert dataset.load() == {
        "repo_id": "me/adapter",
        "commit": f"{1:040x}",
        "url": "https://huggingface.co/me/adapter/commit/1",
        "private": True,
        "weights_sha256": {"adapter_model.safetensors": "c" * 64},
    }


def test_published_copy_has_no_local_path(hub, make, publication, tmp_path):
    before = (publication.directory / "adapter_config.json").read_bytes()
    make().save(publication)
    files = hub.repositories["me/adapter"]["files"]
    config = json.loads(files["adapter_config.json"])
    assert config == {"base_model_name_or_path": "google/gemma-2-27b", "r": 64}
    assert (publication.directory / "adapter_config.json").read_bytes() == before
    # a downloaded copy passes the check of its checksums
    noted = json.loads(files["ja_instruct.json"])["files"]["adapter_config.json"]
    assert noted["sha256"] == hashlib.sha256(files["adapter_config.json"]).hexdigest()
    copy = tmp_path / "downloaded"
    (copy / "templates").mkdir(parents=True)
    for name, content in files.items():
        (copy / name).write_bytes(content)
    AdapterDataset(filepath=copy).check()


def test_directory_without_provenance_is_published_without_its_folders(hub, make, publication):
    (publication.directory / "ja_instruct.json").unlink()
    make().save(publication)
    assert set(hub.repositories["me/adapter"]["files"]) == {
        ".DS_Store",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_old_weights_are_removed_and_other_files_stay(hub, make, publication):
    files = {"model-00001-of-00002.safetensors": b"old", "figure.png": b"", ".gitattributes": b""}
    hub.repositories["me/adapter"] = {"private": False, "files": files}
    make().save(publication)
    assert "model-00001-of-00002.safetensors" not in files
    assert {"figure.png", ".gitattributes", "adapter_model.safetensors"} <= set(files)


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
    hub.errors["whoami"] = AssertionError("asked")
    dataset = make(None)
    for call in (dataset.check_output, lambda: dataset.save(publication)):
        with pytest.raises(InputError, match=r"'repo_id' of this catalog entry .* is not set"):
            call()


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
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "needs a login to the hub: run 'hf auth login'"),
        (http_error(401), "needs a login to the hub"),
        (OfflineModeIsEnabled("offline"), "cannot be reached .OfflineModeIsEnabled"),
        (httpx.ConnectError("no route"), "cannot be reached .ConnectError"),
    ],
)
def test_missing_login_is_refused(hub, make, publication, error, message):
    hub.errors["whoami"] = error
    dataset = make()
    for call in (dataset.check_output, lambda: dataset.save(publication)):
        with pytest.raises(InputError, match=message):
            call()
    assert hub.repositories == {}


def test_missing_token_with_the_real_client(make):
    with pytest.raises(InputError, match=r"needs a login to the hub.*HF_TOKEN"):
        make().check_output()


@pytest.mark.parametrize("where", ["create_repo", "create_commit"])
def test_rejected_upload_leaves_no_record(hub, make, publication, where):
    hub.errors[where] = http_error(403)
    dataset = make()
    with pytest.raises(InputError, match="could not be published to 'me/adapter': 403"):
        dataset.save(publication)
    assert not dataset.exists()
