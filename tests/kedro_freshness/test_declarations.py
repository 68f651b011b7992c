"""What is declared to have no effect does not count."""

import functools

import freshness_nodes as nodes
import pytest
from kedro.pipeline import node, pipeline

from kedro_freshness import unaffected_by
from kedro_freshness.declarations import without_effect

OPTIONS = {"seed": 1, "device": "cpu", "gpu": {"memory_gb": 8}}


@pytest.fixture
def declared(project):
    """Return a project whose node declares its cache and most of its options."""
    project.parameters["options"] = OPTIONS
    project.catalog["cache"] = project.json_entry("cache")
    project.write("cache", [])
    inputs = ["raw", "cache", "params:options"]
    project.set("__default__", node(nodes.with_options, inputs, "cleaned", name="make"))
    project.run()
    return project


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"device": "cuda"}, []),
        ({"gpu": {"memory_gb": 9}}, []),
        ({"gpu": None}, []),
        ({"new": 1}, []),
        ({"seed": 2}, ["options.seed was 1, is 2"]),
        ({"seed": 2, "device": "cuda"}, ["options.seed was 1, is 2"]),
    ],
)
def test_parameters(declared, change, reasons):
    assert declared.reasons("cleaned", params={"options": change}) == reasons


def test_record_has_only_what_counts(declared):
    assert declared.record("cleaned")["parameters"] == {"options.seed": 1}
    assert list(declared.record("cleaned")["inputs"]) == ["raw"]


def test_dataset(declared):
    declared.write("cache", [1])
    assert declared.again().nodes == []
    declared.write("raw", [1])
    assert declared.again().nodes == ["make"]


def test_declaration_that_came_later(declared):
    """A record holds what did count; what does not any more is not missed."""
    inputs = ["raw", "cache", "params:options"]
    plain = node(lambda raw, cache, options: raw, inputs, "cleaned", name="make")
    declared.set("__default__", plain)
    declared.run()
    assert "options.device" in declared.record("cleaned")["parameters"]
    declared.set("__default__", node(nodes.with_options, inputs, "cleaned", name="make"))
    assert declared.reasons("cleaned", params={"options": {"device": "cuda"}}) == []


@pytest.mark.parametrize("namespace", ["space", "outer.inner"])
def test_namespace(project, namespace):
    first, *rest = namespace.split(".")
    values = OPTIONS
    for part in reversed(rest):
        values = {part: {"options": values}} if values is OPTIONS else {part: values}
    project.parameters[first] = {"options": OPTIONS} if not rest else values
    inputs = ["raw", "cache", "params:options"]
    inner = pipeline([node(nodes.with_options, inputs, "made", name="make")])
    project.pipelines["__default__"] = pipeline(inner, namespace=namespace, inputs="raw")
    for name in ("cache", "made"):
        project.catalog[f"{namespace}.{name}"] = project.json_entry(name)
    project.write("cache", [])
    project.run()
    assert project.record("made")["parameters"] == {f"{namespace}.options.seed": 1}
    project.write("cache", [1])

    def changed(key, value):
        options = {"options": {key: value}}
        return {first: dict.fromkeys(rest, options) or options}

    name = f"{namespace}.made"
    assert project.reasons(name, params=changed("device", "cuda")) == []
    assert project.reasons(name, params=changed("seed", 2)) == [
        f"{namespace}.options.seed was 1, is 2"
    ]


def test_parameter_of_two_nodes_between_which_is_only_memory(declared):
    """What does not matter to one node matters to the next."""
    inputs = ["raw", "cache", "params:options"]
    declared.set(
        "__default__",
        node(nodes.with_options, inputs, "memory", name="make"),
        node(nodes.as_list, ["memory", "params:options.device"], "model", name="use"),
    )
    declared.run()
    assert declared.record("model")["parameters"] == {"options.seed": 1, "options.device": "cpu"}
    assert declared.again(params={"options": {"device": "cuda"}}).nodes == ["make", "use"]


def wrapper(function):
    @functools.wraps(function)
    def wrapped(*arguments):
        return function(*arguments)

    return wrapped


class Callable:
    def __call__(self, value):
        return value

    @unaffected_by("params:one")
    def method(self, value):
        return value


@unaffected_by("params:one")
def function(value):
    return value


@pytest.mark.parametrize(
    "declared",
    [
        function,
        wrapper(function),
        unaffected_by("params:one")(wrapper(lambda value: value)),
        functools.partial(function, 1),
        functools.partial(wrapper(function), 1),
        unaffected_by("params:one")(functools.partial(lambda value: value, 1)),
        unaffected_by("params:one")(Callable()),
        Callable().method,
        unaffected_by("params:one")(lambda value: value),
    ],
)
def test_functions(declared):
    assert without_effect(declared).covers("params:one")
    assert not without_effect(declared).covers("params:two")


@pytest.mark.parametrize("undeclared", [len, lambda: 1, Callable(), functools.partial(len)])
def test_functions_without_a_declaration(undeclared):
    assert not without_effect(undeclared).covers("params:one")


def test_names_that_only_begin_alike():
    declared = without_effect(unaffected_by("params:gpu")(lambda: 1))
    assert declared.covers("params:gpu.memory")
    assert not declared.covers("params:gpus")


def test_exception_must_be_a_tuple():
    with pytest.raises(TypeError, match=r"but='params:a' must be a tuple: but=\('params:a',\)"):
        unaffected_by("params", but="params:a")


def test_built_in_function():
    with pytest.raises(TypeError):
        unaffected_by("params:one")(len)
