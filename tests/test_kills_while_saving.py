"""Every output of every catalog appears complete or not at all, whenever its process is killed."""

import json
from pathlib import Path

from test_pipeline_registry import ENVIRONMENTS

from ja_instruct.pipeline_registry import register_pipelines

SCRIPT = Path(__file__).with_name("saves_to_be_killed.py")
# written by the node that loads it; answer_store, to which answers are appended, has its own tests
WRITTEN_INPUTS = {"encoding_cache"}
IRRELEVANT = {"filepath", "metadata"}


def find_problems(run_python, folder, catalog):
    done = run_python(SCRIPT, folder, json.dumps(catalog))
    return json.loads(done.stdout.splitlines()[-1])  # after the log


def test_every_output_of_every_catalog_survives_kills(run_python, tmp_path, read_configuration):
    outputs = {name for one in register_pipelines().values() for name in one.all_outputs()}
    different = {}  # entries that differ by more than their path are killed once
    for environment in ENVIRONMENTS:
        catalog = read_configuration(environment)["catalog"]
        written = sorted((outputs | WRITTEN_INPUTS) & set(catalog))
        assert len(written) > 20
        for name in written:
            rest = {key: catalog[name][key] for key in catalog[name].keys() - IRRELEVANT}
            key = json.dumps(rest, sort_keys=True)
            different.setdefault(key, (f"{environment}, {name}", catalog[name]))
    catalog = dict(different.values())
    assert find_problems(run_python, tmp_path, catalog) == {name: [] for name in catalog}


def test_datasets_that_write_in_place_are_found(run_python, tmp_path):
    kinds = ("json.JSONDataset", "text.TextDataset", "plotly.JSONDataset", "pickle.PickleDataset")
    catalog = {kind: {"type": kind, "filepath": "data/output"} for kind in kinds}
    problems = find_problems(run_python, tmp_path, catalog)
    for kind in kinds[:3]:
        assert "first byte, with old content: changed" in problems[kind]
        assert "half of the largest file, without old content: exists" in problems[kind]
        assert "half of the largest file, without old content: not restored" in problems[kind]
    assert problems[kinds[3]] == ["pickle.PickleDataset: name in SAMPLES what it saves"]
