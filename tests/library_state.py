"""What the libraries of retrieval could leave changed in a process.

    python library_state.py PROJECT

runs the nodes that use them in the environment ``test`` of a project with outputs, and prints what
they have changed as JSON: environment variables, and attributes of the libraries' classes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

LIBRARIES = ("colbert", "ragatouille", "transformers")


def list_attributes() -> dict[tuple[str, str], int]:
    """Return the identity of each attribute of the libraries' classes, by class and name."""
    modules = [one for name, one in sys.modules.items() if name.split(".")[0] in LIBRARIES]
    # type(), as isinstance would import what a lazy module offers
    classes = [
        one
        for module in modules
        for one in list(vars(module).values())
        if issubclass(type(one), type) and one.__module__.split(".")[0] in LIBRARIES
    ]
    return {
        (f"{owner.__module__}.{owner.__qualname__}", name): id(value)
        for owner in classes
        for name, value in vars(owner).items()
        if not name.startswith("__")
    }


def main(project: Path) -> None:
    """Run ``encode_pool`` without its cache, and ``build_prompts``; print what is left changed."""
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project)
    with KedroSession.create(project_path=project, env="test") as session:
        catalog = session.load_context().catalog
        nodes = pipelines["__default__"].only_nodes("encode_pool", "build_prompts").nodes
        inputs = [{name: catalog.load(name) for name in node.inputs} for node in nodes]
        next(one for one in inputs if "encoding_cache" in one)["encoding_cache"] = None
        variables = dict(os.environ)
        attributes: dict[tuple[str, str], int] = {}
        for node, given in zip(nodes, inputs, strict=True):
            node.run(given)
            # what the first node has imported is compared after the second
            attributes = attributes or list_attributes()
    left = {name for name, _ in variables.items() ^ os.environ.items()}
    now = list_attributes()
    changed = {".".join(key) for key, value in attributes.items() if now.get(key) != value}
    loaded = {".".join(key) for key in now if key[1] == "loaded_extensions"}
    print(json.dumps({"variables": sorted(left), "attributes": sorted(changed | loaded)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
