"""The notebooks read the catalog, define nothing, and run on the results of a run."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
SECONDS = 120

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.reads(path.read_text("utf-8"), as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells):
    """Return all outputs of code cells as one text, tables as HTML."""
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(
        output.get("text", "") + "".join(map(str, output.get("data", {}).values()))
        for output in outputs
    )


@pytest.fixture(scope="module")
def execute(finished_project, subprocess_environment, tmp_path_factory):
    """Return a function that executes a notebook in a project with the results of ``test``."""
    folder = tmp_path_factory.mktemp("opened") / "project/notebooks"
    shutil.copytree(finished_project, folder.parent, symlinks=True)
    folder.mkdir()
    settings = str(tmp_path_factory.mktemp("jupyter"))
    environment = {**subprocess_environment, "IPYTHONDIR": settings, "JUPYTER_CONFIG_DIR": settings}

    def run(notebook, **variables):
        client = NotebookClient(
            notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env={**environment, **variables})

    return run


@pytest.fixture(scope="module")
def executed(execute):
    """Every notebook by its name, with its outputs."""
    notebooks = {path.stem: read(path) for path in NOTEBOOKS}
    for notebook in notebooks.values():
        execute(notebook, JA_INSTRUCT_ENV="test")
    return notebooks


def test_notebooks_exist():
    assert NOTEBOOKS


@every_notebook
def test_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.source.strip() for cell in notebook.cells)


@every_notebook
def test_outputs_are_stripped(path):
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not [cell.id for cell in notebook.cells if cell.metadata]
    for cell in code_cells(notebook):
        assert cell.outputs == [], cell.id
        assert cell.execution_count is None, cell.id


@every_notebook
def test_defines_nothing(path):
    for cell in code_cells(read(path)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, DEFINITIONS)]
        assert not found, cell.id


@every_notebook
def test_explains_itself_in_japanese_then_in_english(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert re.search(r"[ぁ-ん][^\n]*\n\n(?=[A-Z`]).*[a-z`]\.$", cell.source, re.DOTALL), (
                cell.id
            )


@every_notebook
def test_executes_quietly(path, executed):
    """Its outputs are tables and plots, without warnings or log lines."""
    kinds = {"text/plain", "text/html", "application/vnd.plotly.v1+json"}
    for cell in code_cells(executed[path.stem]):
        for output in cell.outputs:
            assert output.output_type in {"display_data", "execute_result"}, output
            assert set(output.data) <= kinds, cell.id
            assert not re.search("WARNING|INFO|Traceback", output.data.get("text/plain", ""))


def test_look_at_a_run_shows_the_results(executed):
    notebook = executed["look_at_a_run"]
    cells = {cell.id: shown([cell]) for cell in code_cells(notebook)}
    assert "rare_survivor_character" in cells["filter-summary"]
    assert cells["rejected-pairs"].count("<tr>") == 1 + 5
    for rule in ("banned_substring", "rare_character", "language"):
        assert rule in cells["rejected-pairs"]
    assert "### 回答:\n" in cells["train-dataset"]
    assert "training loss" in cells["loss-plot"]
    assert cells["few-shot-examples"].count("<tr>") == 1 + 3
    assert "優秀な人間になりきって" in cells["prompt-text"]
    assert cells["answers-compared"].count("<tr>") == 1 + 2
    assert "答え：11回" in cells["answers-compared"]


def test_why_pairs_were_rejected_tries_a_change(executed):
    notebook = executed["why_pairs_were_rejected"]
    cells = {cell.id: shown([cell]) for cell in code_cells(notebook)}
    assert "rare_character alone drops about" in cells["costs"]
    assert "翻訳" in cells["texts-table"]
    assert cells["rejects"].count("<tr>") >= 1 + 5
    kept, kept_with_the_changes = map(int, re.findall(r"<td>(\d+)</td>", cells["filter-again"]))
    brought_back = map(int, re.findall(r"<td>(\d+)</td>", cells["brought-back-pairs"]))
    assert kept < kept_with_the_changes
    # the demo holds no pair twice
    assert kept + sum(brought_back) == kept_with_the_changes


@every_notebook
def test_names_the_command_that_makes_missing_results(path, execute):
    """Without the variable it reads ``demo``, which has not run here."""
    notebook = read(path)
    with pytest.raises(CellExecutionError) as caught:
        execute(notebook)
    assert "the environment 'demo' has no filter_report, " in caught.value.evalue
    assert (
        "'kedro run --env=demo --only-missing-outputs' makes what is missing" in caught.value.evalue
    )
    message = " ".join(re.sub(r"\x1b\[[\d;]*m", "", shown(code_cells(notebook))).split())
    assert "--only-missing-outputs' makes what is missing" in message
