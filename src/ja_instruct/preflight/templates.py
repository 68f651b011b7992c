"""Check the chat template before the first node, as soon as the run's tokenizer can be known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.hub_model_dataset import HubModelDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.vocabulary import TOKENIZER_FILE
from ja_instruct.preflight.folders import filepath_of
from ja_instruct.prompts import PromptBuilder, PromptParameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node
    from transformers import PreTrainedTokenizerBase

PROMPTS, MODEL, SOURCE = "params:prompts", "quantized_model", "base_model"


def template_problems(nodes: Sequence[Node], catalog: DataCatalog) -> list[str]:
    """Return why the chat template of the run's model cannot be used.

    It is the template of ``quantized_model``, or if this run makes that, of ``base_model``. A
    model that is converted or downloaded first is not checked here, except for the tokenizer on the
    hub, which is small; the nodes check the template too.
    """
    inputs = {name for node in nodes for name in node.inputs}
    if not {PROMPTS, MODEL} <= inputs:
        return []
    prompts = PromptParameters.model_validate(catalog.load(PROMPTS))
    if prompts.format != "chat_template":
        return []
    is_made = any(MODEL in node.outputs for node in nodes)
    name = SOURCE if is_made else MODEL
    try:
        tokenizer = _load_tokenizer(catalog.get(name))
        if tokenizer is None:
            return []
        if is_made and not tokenizer.chat_template:
            tokenizer.chat_template = catalog.load("params:quantization").chat_template
        builder = PromptBuilder(prompts, tokenizer)
        if "params:inference" in inputs and catalog.load("params:inference").top_k:
            builder.prompt("質問", [{"input": "質問", "output": "答え"}])
    except InputError as error:
        return [f"'{name}': {error}"]
    return []


def _load_tokenizer(dataset: Any) -> PreTrainedTokenizerBase | None:
    is_hub = isinstance(dataset, HubModelDataset)
    directory = dataset.peek_tokenizer() if is_hub else filepath_of(dataset)
    if directory is None or not (directory / TOKENIZER_FILE).is_file():
        return None
    return ModelDirectory(directory, directory.name).load_tokenizer()
