"""Whether a repository of the hub can be reached; a fake transport answers HTTP requests."""

import json

import httpx
import pytest

from ja_instruct.errors import InputError
from ja_instruct.models.hub import check_repository


def test_reachable(hub):
    requested = hub(lambda request: httpx.Response(200, json={"id": "google/gemma-2-27b"}))
    check_repository("google/gemma-2-27b", "main", "model")
    check_repository("llm-jp/magpie-sft-v1.0", None, "dataset")
    assert any("gemma-2-27b" in path and path.endswith("/revision/main") for _, path in requested)
    assert any(path.startswith("/api/datasets/llm-jp/magpie-sft-v1.0") for _, path in requested)


@pytest.mark.parametrize(
    ("status", "headers", "messages"),
    [
        (
            403,
            {"X-Error-Code": "GatedRepo"},
            [
                "model 'google/gemma-2-27b' is gated",
                "accept its terms at https://huggingface.co/google/gemma-2-27b",
                "hf auth login",
                "--env=demo",
            ],
        ),
        (404, {"X-Error-Code": "RepoNotFound"}, ["is not on the hub, or it is private"]),
        (404, {"X-Error-Code": "RevisionNotFound"}, ["has no revision 'v9'"]),
        (500, {}, ["cannot be reached (HfHubHTTPError)", "--env=demo"]),
    ],
)
def test_refusing(hub, status, headers, messages):
    hub(lambda request: httpx.Response(status, headers=headers, json={}))
    with pytest.raises(InputError) as caught:
        check_repository("google/gemma-2-27b", "v9", "model")
    for message in messages:
        assert message in str(caught.value)


def test_unreachable(hub):
    def fail(request):
        raise httpx.ConnectError("no route to host", request=request)

    hub(fail)
    with pytest.raises(InputError, match=r"cannot be reached \(ConnectError\).*--env=demo"):
        check_repository("google/gemma-2-27b", None, "model")


def test_unreachable_hub_with_a_cached_model(hub_cache):
    snapshot = hub_cache / "models--google--gemma-2-27b" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({}), "utf-8")
    check_repository("google/gemma-2-27b", None, "model")
    with pytest.raises(InputError, match="cannot be reached"):
        check_repository("google/gemma-2-9b", None, "model")
