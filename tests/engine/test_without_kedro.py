"""The engine is used by its documented ten lines, in a process that starts no Kedro project."""

import inspect
import textwrap
from pathlib import Path

import pytest

import ja_instruct.engine
from ja_instruct.engine import BatchingParameters, EngineParameters, load_engine
from ja_instruct.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/engine.md").read_text("utf-8")
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]


def test_documented_lines_print_an_answer_per_prompt(tiny_nf4, tiny_adapter, run_python):
    code = EXAMPLE.replace("data/06_models/demo/quantized_model", str(tiny_nf4.path))
    code = code.replace("data/06_models/demo/adapter", str(tiny_adapter.path))
    code += 'import sys\nprint("kedro.framework" in sys.modules)\n'
    done = run_python("-c", code)
    assert done.stdout.count("回答: ") == 2
    assert done.stdout.splitlines()[-1] == "False"


def test_docstring_has_the_same_example_of_ten_lines():
    assert textwrap.indent(EXAMPLE, "    ") in inspect.getdoc(ja_instruct.engine)
    assert len([line for line in EXAMPLE.splitlines() if line]) == 9


def test_no_module_imports_kedro_or_a_higher_layer():
    forbidden = ("kedro", "ja_instruct.pipelines", "ja_instruct.datasets", "ja_instruct.hooks")
    for path in (ROOT / "src/ja_instruct/engine").rglob("*.py"):
        words = [line.split() for line in path.read_text("utf-8").splitlines()]
        modules = [word[1] for word in words if word[:1] in (["import"], ["from"])]
        assert not [one for one in modules if one.startswith(forbidden)], path


def test_import_does_not_load_torch(run_python):
    code = "import sys, ja_instruct.engine; sys.exit('torch' in sys.modules)"
    run_python("-c", code)


def test_defaults_are_plain_greedy_decoding_and_cover_every_setting(read_parameters):
    defaults = EngineParameters()
    assert (defaults.repetition_penalty, defaults.bad_words) == (1.0, ())
    base = read_parameters("base")["inference"]
    assert set(EngineParameters.model_fields) <= set(base)
    assert set(BatchingParameters.model_fields) == set(base["batching"])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_path_without_a_model_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"give the directory of a quantized model"):
        load_engine(tmp_path / name, parameters=EngineParameters(device="cpu"))
