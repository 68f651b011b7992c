"""The project's pipelines."""

from kedro.pipeline import Pipeline

from ja_instruct.completed_pipeline import CompletedPipeline
from ja_instruct.errors import InputError
from ja_instruct.pipelines import (
    data_filtering,
    export,
    inference,
    publishing,
    quantization,
    rag_index,
    reporting,
    sft,
)


class Pipelines(dict[str, Pipeline]):
    """The pipelines by name; one that is not there is an error of the command line."""

    def __missing__(self, name: str) -> Pipeline:
        """Raise ``InputError`` with the names, for which Kedro prints a traceback."""
        raise InputError(f"no pipeline is named '{name}'; the pipelines: {', '.join(self)}")


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline by name.

    ``__default__`` leaves out exports and publishing, which copy or upload the whole model.
    """
    pipelines = {
        "data_filtering": data_filtering.create_pipeline(),
        "quantization": quantization.create_pipeline(),
        "sft": sft.create_pipeline(),
        "rag_index": rag_index.create_pipeline(),
        "inference": inference.create_pipeline(),
        "reporting": reporting.create_pipeline(),
    }
    on_request = {
        "export": export.create_pipeline(),
        "gguf_export": export.create_gguf_pipeline(),
        "publishing": publishing.create_pipeline(),
    }
    default = sum(pipelines.values(), start=Pipeline([]))
    registered = {**pipelines, **on_request, "__default__": default}
    return Pipelines({name: CompletedPipeline(part.nodes) for name, part in registered.items()})
