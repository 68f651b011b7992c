"""Nodes of ``sft``."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct.config import parameter_names
from ja_instruct.control_tokens import unmark
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import gpu_resources
from ja_instruct.models.directory import ModelArtifact, ModelDirectory
from ja_instruct.pipelines.sft.backends import BACKENDS
from ja_instruct.pipelines.sft.checkpoints import (
    WITHOUT_EFFECT,
    describe_training,
    fingerprint,
)
from ja_instruct.pipelines.sft.gpu_resources import estimate_training
from ja_instruct.pipelines.sft.histories import read_histories
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.pipelines.sft.results import provenance_of, summarize, write_card
from ja_instruct.pipelines.sft.resuming import find_checkpoint, record_training
from ja_instruct.pipelines.sft.samples import encode_dataset, to_samples
from ja_instruct.pipelines.sft.step_counts import held_out_count
from ja_instruct.prompts import PromptBuilder, PromptParameters
from ja_instruct.tables.columns import as_dataset, require_columns
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from datasets import Dataset
    from plotly.graph_objects import Figure
else:  # Kedro resolves the hints of a node; these libraries take seconds to import
    Dataset = Figure = Any

logger = logging.getLogger(__name__)


@unaffected_by("params:sft", but=("params:sft.eval_fraction", "params:sft.training.seed"))
def build_datasets(
    filtered_pairs: Dataset,
    qa_pairs: Dataset,
    quantized_model: ModelDirectory,
    prompts: PromptParameters,
    parameters: SftParameters,
) -> tuple[Dataset, Dataset]:
    """Return training and evaluation samples: ``prompt``, ``completion``, ``source``.

    The training samples are the filtered pairs, in their order, followed by those of ``qa_pairs``.
    ``eval_fraction`` of the filtered pairs, drawn by the seed, are the evaluation samples instead.
    The sample of a pair with a ``history`` is the whole conversation; ``earlier_answers`` then has
    the start and end of each earlier answer in the prompt. The encoding adds BOS and EOS later.

    Raises:
        InputError: A column is missing, a history cannot be used, no sample is left, or the chat
            template cannot be used.
    """
    from datasets import Dataset

    filtered_pairs = as_dataset(filtered_pairs, "filtered_pairs")
    qa_pairs = as_dataset(qa_pairs, "qa_pairs")
    if len(filtered_pairs):  # an empty dataset has no columns
        require_columns(filtered_pairs, ("instruction", "response"), "filtered_pairs")
    if len(qa_pairs):
        require_columns(qa_pairs, ("input", "output"), "qa_pairs")
    count = len(filtered_pairs)
    chance = random.Random(parameters.training.seed)  # noqa: S311
    held_out = set(chance.sample(range(count), held_out_count(count, parameters.eval_fraction)))
    builder = PromptBuilder(prompts, quantized_model.load_tokenizer())
    histories = read_histories(filtered_pairs, "filtered_pairs")
    filtered = to_samples(
        [
            (pair["instruction"], pair["response"], history)
            for pair, history in zip(filtered_pairs, histories, strict=True)
        ],
        builder,
        "filtered_pairs",
    )
    written = to_samples(
        [(pair["input"], pair["output"], ()) for pair in qa_pairs], builder, "qa_pairs"
    )
    train = [sample for position, sample in enumerate(filtered) if position not in held_out]
    train += written
    if not train:
        raise InputError("filtered_pairs and qa_pairs are both empty: nothing to train on")
    evaluation = [filtered[position] for position in sorted(held_out)]
    return Dataset.from_list(train), Dataset.from_list(evaluation)


@unaffected_by(
    "params:sft.device",
    "params:sft.training.gradient_checkpointing",
    "params:sft.training.per_device_eval_batch_size",
    *parameter_names("sft", WITHOUT_EFFECT),
    but=("params:sft.model_card", "params:sft.training.divergence_nats"),
)
@gpu_resources(estimate_training)
def train(
    quantized_model: ModelDirectory,
    train_dataset: Dataset,
    eval_dataset: Dataset,
    parameters: SftParameters,
) -> tuple[ModelArtifact, dict[str, Any], list[dict[str, float]]]:
    """Train a LoRA adapter on the 4-bit model (QLoRA, arXiv:2305.14314).

    An interrupted run is resumed from its last checkpoint. ``eval_dataset`` is evaluated before and
    after training, and between as ``eval_strategy`` says.

    Returns:
        The adapter with its tokenizer and model card; ``train_metrics``; ``train_history``, the
        trainer's log entries with losses in nats a token.

    Raises:
        InputError: Parameters do not fit the model, no sample fits, packed samples would attend to
            each other, a sample runs out of memory, or the loss is not finite or diverges.
    """
    training = describe_training(quantized_model, train_dataset, parameters)
    root = Path(parameters.checkpoint_dir)
    checkpoint = find_checkpoint(root, training, resume=parameters.resume)
    model, tokenizer = BACKENDS[parameters.backend](quantized_model, parameters)
    from ja_instruct.pipelines.sft.training import build_trainer, train_from_last_checkpoint

    model.config.use_cache = False
    limits = (parameters.max_seq_length, parameters.completion_only_loss, parameters.over_long)
    encoded, counts = encode_dataset(train_dataset, tokenizer, *limits)
    held_out, eval_counts = encode_dataset(eval_dataset, tokenizer, *limits)
    if not len(encoded):
        raise InputError(
            f"no training sample has an answer within max_seq_length={parameters.max_seq_length} "
            f"tokens; raise sft.max_seq_length"
        )
    directory = root / fingerprint(training)
    if parameters.training.save_strategy != "no":
        record_training(directory, training)
    evaluation = held_out if len(held_out) else None
    trainer = build_trainer(model, tokenizer, encoded, evaluation, parameters, str(directory))
    resumed_from_step = train_from_last_checkpoint(trainer, checkpoint)
    history = [dict(entry) for entry in trainer.state.log_history]
    summary = summarize(trainer, history, counts, eval_counts, resumed_from_step)
    metrics = {"summary": summary, "train_dataset": counts, "eval_dataset": eval_counts}
    provenance = provenance_of(quantized_model, parameters, summary)
    card = write_card(provenance, parameters, metrics, unmark(train_dataset[0]["prompt"]))
    return ModelArtifact(trainer.model, tokenizer, provenance, card), metrics, history


def plot_loss(train_history: list[dict[str, float]]) -> Figure:
    """Plot training and evaluation losses, in nats a token, over the optimizer's steps."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for key, name, mode in (
        ("loss", "training loss", "lines"),
        ("eval_loss", "evaluation loss (held out)", "lines+markers"),
    ):
        points = [(entry["step"], entry[key]) for entry in train_history if key in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            figure.add_scatter(x=steps, y=losses, mode=mode, name=name)
    figure.update_layout(
        title="Loss",
        xaxis_title="step",
        yaxis_title="nats per token",
        template="plotly_white",
        legend={"orientation": "h", "y": 1.1, "x": 1, "xanchor": "right"},
    )
    return figure
