"""What an inspection costs grows with the number of nodes, not with its square."""

from collections import Counter

import freshness_nodes as nodes
import pytest
from kedro.pipeline import node

from kedro_freshness import fingerprints, inspection, recipes, records

COUNT = 500


@pytest.fixture
def calls(monkeypatch):
    """Return how often each costly function is called."""
    counter = Counter()

    def count(module, name):
        original = getattr(module, name)

        def counted(*arguments, **options):
            counter[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    count(inspection, "fingerprint_dataset")
    count(inspection, "read_record")
    count(recipes.Recipes, "_compose")
    count(fingerprints, "fingerprint_path")
    count(records, "read_json")
    count(inspection.Inspection, "_state")
    return counter


def chain(project, *, in_memory):
    """Register a chain of nodes; of those in memory only the last output is persisted."""
    made = [
        node(nodes.join, ["raw" if not index else f"x{index - 1}", "params:limit"], f"x{index}")
        for index in range(COUNT)
    ]
    project.set("__default__", *made)
    for index in range(COUNT - 1 if in_memory else 0, COUNT):
        project.catalog[f"x{index}"] = {
            "type": "text.TextDataset",
            "filepath": str(project.folder / f"data/x{index}.txt"),
        }


def fan(project):
    """Register nodes that read the same input, and one that reads all."""
    names = [f"x{index}" for index in range(COUNT - 1)]
    made = [node(nodes.join, ["raw", "params:limit"], name) for name in names]
    project.set("__default__", *made, node(nodes.join, names, f"x{COUNT - 1}"))
    for index in range(COUNT):
        project.catalog[f"x{index}"] = {
            "type": "text.TextDataset",
            "filepath": str(project.folder / f"data/x{index}.txt"),
        }


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_persisted_outputs(project, calls, shape):
    if shape == "chain":
        chain(project, in_memory=False)
    else:
        fan(project)
    for index in range(COUNT):
        (project.folder / f"data/x{index}.txt").write_text(str(index))
    project.set("last", project.pipelines["__default__"].nodes[-1])
    project.run("last")
    calls.clear()
    # the last first, which needs all others
    found = project.inspection()
    found.state(f"x{COUNT - 1}")
    found.remakes(project.pipelines["__default__"])
    assert calls["_state"] == COUNT
    assert calls["read_record"] == COUNT
    assert calls["read_json"] <= 2 * COUNT
    assert calls["_compose"] <= COUNT
    assert calls["fingerprint_dataset"] <= COUNT + 1
    assert calls["fingerprint_path"] <= COUNT + 1


def test_data_in_memory(project, calls):
    chain(project, in_memory=True)
    project.run()
    calls.clear()
    found = project.inspection()
    assert found.state(f"x{COUNT - 1}").kind == "fresh"
    assert found.recipes.of(project.pipelines["__default__"].nodes[-1]).inputs == {"raw"}
    assert calls["_compose"] == COUNT
    assert calls["fingerprint_dataset"] == 2


def test_run_of_stale_outputs(project, calls):
    """Each dataset is hashed once when a run starts, and each output once after it is saved."""
    project.run()
    calls.clear()
    again = project.again(params={"limit": 1})
    assert len(again.nodes) == 3
    names = {"raw", "cleaned", "model", "metrics", "report"}
    assert calls["fingerprint_dataset"] == len(names)
    assert calls["fingerprint_path"] == len(names) + 4
