"""The project's pipelines."""

from kedro.pipeline import Pipeline

from ja_instruct.pipelines import (
    data_filtering,
    inference,
    quantization,
    rag_index,
    reporting,
    sft,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline by name; ``__default__`` chains them all."""
    pipelines = {
        "data_filtering": data_filtering.create_pipeline(),
        "quantization": quantization.create_pipeline(),
        "sft": sft.create_pipeline(),
        "rag_index": rag_index.create_pipeline(),
        "inference": inference.create_pipeline(),
        "reporting": reporting.create_pipeline(),
    }
    return {**pipelines, "__default__": sum(pipelines.values(), start=Pipeline([]))}
