"""Building TRL's trainer, and training from scratch or from a checkpoint.

Imports torch, transformers and TRL: import this module where it is used.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, IntervalStrategy, ProgressCallback
from trl.trainer.sft_config import SFTConfig

from ja_instruct.pipelines.sft.callbacks import (
    LossInProgressBar,
    LossWatch,
    Resumption,
    SaveAfterEvaluation,
)
from ja_instruct.pipelines.sft.checkpoints import read_state
from ja_instruct.pipelines.sft.cpu_trainer import CpuStepTrainer
from ja_instruct.pipelines.sft.micro_batches import collate_step
from ja_instruct.pipelines.sft.neftune import PackedNeftune
from ja_instruct.pipelines.sft.packed_attention import (
    TransformersPacking,
    UnslothPacking,
    require_separate_samples,
)
from ja_instruct.pipelines.sft.step_trainer import StepTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.pipelines.sft.parameters import SftParameters, TrainingParameters

logger = logging.getLogger(__name__)

# Not passed to SFTConfig under these names
OWN_PARAMETERS = {
    "report_to",
    "gradient_checkpointing",
    "tokens_per_batch",
    "packing",
    "early_stopping_patience",
    "early_stopping_threshold",
    "divergence_nats",
}


def training_arguments(parameters: SftParameters, output_dir: str | None = None) -> SFTConfig:
    """Return the trainer's arguments; names that the parameters lack keep their defaults."""
    training = parameters.training
    on_cpu = parameters.device == "cpu"
    settings = training.model_dump(exclude=OWN_PARAMETERS) | _replaced(training)
    if not parameters.eval_fraction:
        settings["eval_strategy"] = "no"
    return SFTConfig(
        **settings,
        output_dir=output_dir or parameters.checkpoint_dir,
        max_length=parameters.max_seq_length,
        report_to=list(training.report_to) or "none",
        # of wandb and others; MLflow's run is that of kedro-mlflow
        run_name=f"sft {Path(output_dir).name}" if output_dir else None,
        use_cpu=on_cpu,
        # TRL's own packing needs flash-attn to keep samples apart
        packing=False,
        # unsloth's own is set when the adapter is made
        gradient_checkpointing=training.gradient_checkpointing and parameters.backend == "peft",
        # the count of early stopping continues
        restore_callback_states_from_checkpoint=True,
        # otherwise a loss that is not finite is logged as the mean of those before it
        logging_nan_inf_filter=False,
        # the default follows transformers' log level
        disable_tqdm=False,
        dataloader_pin_memory=not on_cpu,
        # the samples are token ids, cut to length
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _replaced(training: TrainingParameters) -> dict[str, Any]:
    """Return arguments that differ from the parameters of their name, or are derived."""
    settings: dict[str, Any] = {}
    if training.tokens_per_batch is not None:
        # a batch of the trainer is a whole step, which StepTrainer splits
        step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        settings |= {
            "per_device_train_batch_size": step,
            "per_device_eval_batch_size": step,
            "gradient_accumulation_steps": 1,
        }
    if training.packing:
        settings["neftune_noise_alpha"] = None  # PackedNeftune adds the noise
    if training.early_stopping_patience is not None:
        settings |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    return settings


def fit_to_processes(arguments: SFTConfig) -> SFTConfig:
    """Change the arguments where several processes train together, each on its GPU.

    The search for unused parameters goes: all adapters are used, and with reentrant gradient
    checkpointing it fails. So does the smaller batch on an out-of-memory error, which would halve
    one process's batch while the others wait for its gradients.
    """
    if arguments.world_size > 1:
        arguments.ddp_find_unused_parameters = False
        if arguments.auto_find_batch_size:
            logger.warning("sft.training.auto_find_batch_size is off: it works on one GPU alone")
            arguments.auto_find_batch_size = False
    return arguments


def build_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    parameters: SftParameters,
    output_dir: str | None = None,
) -> StepTrainer:
    """Return a trainer over datasets of ``input_ids`` and ``labels``.

    Raises:
        InputError: Packing is set, and the model cannot keep packed samples apart.
    """
    training = parameters.training
    trainer_class = CpuStepTrainer if parameters.device == "cpu" else StepTrainer
    arguments = fit_to_processes(training_arguments(parameters, output_dir))
    arguments.eval_on_start = eval_dataset is not None
    if eval_dataset is None:  # a share of few pairs may be none
        arguments.eval_strategy = IntervalStrategy.NO
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        # by default TRL's, which pads
        data_collator=None if training.tokens_per_batch is None else collate_step,
    )
    trainer.tokens_per_batch = training.tokens_per_batch
    trainer.backs_off = arguments.auto_find_batch_size
    arguments.auto_find_batch_size = False  # StepTrainer replaces transformers' own
    if training.packing:
        _pack(trainer, parameters)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossInProgressBar())
    trainer.add_callback(LossWatch(training.divergence_nats))
    trainer.add_callback(Resumption(trainer))
    trainer.add_callback(SaveAfterEvaluation())
    if training.early_stopping_patience is not None:
        trainer.add_callback(
            EarlyStoppingCallback(
                training.early_stopping_patience, training.early_stopping_threshold
            )
        )
    return trainer


def _pack(trainer: StepTrainer, parameters: SftParameters) -> None:
    on_unsloth = parameters.backend == "unsloth"
    packing = UnslothPacking(trainer.model) if on_unsloth else TransformersPacking()
    dataset: Any = trainer.train_dataset
    first = dataset[:2]["input_ids"]
    if len(first) == 2:
        sequences = [torch.tensor(ids) for ids in first]
        difference = require_separate_samples(trainer.model, sequences, packing)
        logger.info("sft: packed samples do not mix (difference %.1e)", difference)
    trainer.packing = packing
    alpha = parameters.training.neftune_noise_alpha
    if alpha is not None:
        trainer.neftune = PackedNeftune(trainer.model, alpha)


def train_from_last_checkpoint(trainer: StepTrainer, checkpoint: Path | None) -> int:
    """Train to the end, from ``checkpoint`` if there is one, and evaluate the result.

    Returns:
        The step that training resumed from, 0 without a checkpoint.
    """
    if checkpoint is None:
        trainer.train()
        _evaluate_at_end(trainer)
        return 0
    state = read_state(checkpoint)
    trainer.args.eval_on_start = False
    if "mlflow" in (trainer.args.report_to or ()):
        _log_earlier_curves(state["log_history"])
    trainer.train(resume_from_checkpoint=str(checkpoint))
    _evaluate_at_end(trainer)
    return int(state["global_step"])


def _evaluate_at_end(trainer: StepTrainer) -> None:
    if trainer.eval_dataset is None:
        return
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    if trainer.args.load_best_model_at_end or evaluated[-1:] != [trainer.state.global_step]:
        trainer.evaluate()


def _log_earlier_curves(history: Sequence[dict[str, float]]) -> None:
    """Log the curves up to the checkpoint to the MLflow run of the resumed training."""
    import mlflow

    if mlflow.active_run() is None:
        return
    for entry in history:
        metrics = {key: value for key, value in entry.items() if key != "step"}
        mlflow.log_metrics(metrics, step=int(entry["step"]))
