"""A disk that fills up in the middle of each stage: one message, nothing lost, a resumed run."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch

import pytest

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A stage whose outputs do not fit.

    Attributes:
        arguments: Of ``kedro run``.
        missing: Patterns of the outputs that are not there before; all others are.
        disk: The folder on the small disk.
        free: Kilobytes that are free on it.
        named: The file or directory that the message names.
        added: Patterns of outputs that the undisturbed run of ``__default__`` does not have.
    """

    arguments: tuple[str, ...]
    missing: tuple[str, ...]
    disk: str
    free: int
    named: str
    added: tuple[str, ...] = ()


REMEDY = (
    "; make room, or point it (catalog or parameters) to a folder on a larger disk, then repeat "
    "the command with --only-missing-outputs to continue. What was there before is unchanged"
)
CASES = {
    "filtered pairs": Case(
        ("--pipeline=data_filtering",),
        ("03_primary/test/rejected_pairs.jsonl",),
        "03_primary",
        260,
        "03_primary/test/rejected_pairs.jsonl",
    ),
    "page of the filter": Case(
        ("--pipeline=data_filtering",),
        ("08_reporting/test/filter_report.html",),
        "08_reporting",
        400,
        "08_reporting/test/filter_report.html",
    ),
    "model": Case(
        ("--pipeline=quantization",),
        ("06_models/test/quantized_model",),
        "06_models",
        400,
        "06_models/test/quantized_model",
    ),
    "checkpoint": Case(
        ("--pipeline=sft",),
        ("06_models/test/adapter", "06_models/test/checkpoints"),
        "06_models",
        320,
        "/checkpoint-4",
    ),
    "adapter": Case(
        ("--pipeline=sft",),
        ("06_models/test/adapter",),
        "06_models",
        80,
        "06_models/test/adapter",
    ),
    "index": Case(
        ("--pipeline=rag_index",),
        ("04_feature/test/*",),
        "04_feature",
        600,
        "04_feature/test/retrieval_index",
    ),
    "stored answers": Case(
        (
            "--pipeline=inference",
            "--from-nodes=answer_tasks",
        ),
        ("07_model_output/test/output.jsonl", "07_model_output/test/answer_store.jsonl"),
        "07_model_output",
        4,
        "07_model_output/test/answer_store.jsonl",
    ),
    "report": Case(
        ("--pipeline=reporting",),
        ("08_reporting/test/report.html",),
        "08_reporting",
        1000,
        "08_reporting/test/report.html",
    ),
    "merged model": Case(
        ("--pipeline=export",),
        ("06_models/test/merged_model",),
        "06_models",
        900,
        "06_models/test/merged_model",
        ("06_models/test/*merged_model*", "08_reporting/test/*export_report*"),
    ),
}


def contents(project):
    """Return the digest of every output, by path; freshness records and MLflow's files differ."""
    return {
        path.relative_to(project / "data").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (project / "data").rglob("*")
        if path.is_file() and not {".freshness", "mlflow"} & {*path.parts}
    }


def run(invoke_kedro, project, *arguments):
    result = invoke_kedro("--env=test", *arguments, cwd=project)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_stage(
    case, finished_project, invoke_kedro, small_disk, benchmark_module, tmp_path, monkeypatch
):
    # otherwise the preflight refuses these disks
    monkeypatch.setattr("ja_instruct.preflight.folders.FREE_BYTES_MIN", 0)
    project = tmp_path / "project"
    shutil.copytree(finished_project, project, symlinks=True)
    for path in [path for pattern in case.missing for path in (project / "data").glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_room = small_disk(project / "data" / case.disk, case.free)
    before = contents(project)

    result = run(invoke_kedro, project, *case.arguments)
    assert result.exit_code == 1
    (message,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert f"{case.named} cannot be written: no room is left on the disk, 0." in message
    assert message.endswith(REMEDY)
    after = contents(project)
    # the stage's first reports are written again, with other seconds
    assert {path for path in before if before[path] != after.get(path)} <= {
        path for path in after if path.startswith("08_reporting")
    }
    assert not [path for path in after if "/." in path]
    assert case.named not in after or case.named.endswith("answer_store.jsonl")
    for path in (project / "data").rglob("*.json*"):
        text = path.read_text("utf-8")
        for whole in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(whole)

    make_room()
    result = run(invoke_kedro, project, *case.arguments, "--only-missing-outputs")
    assert result.exit_code == 0, result.output
    found = benchmark_module("harness.outputs").differences(finished_project, project)
    # what made an output is another test's business
    allowed = ("*/.freshness/*", *case.added)
    assert [one for one in found.items() if not any(fnmatch(one[0], p) for p in allowed)] == []
