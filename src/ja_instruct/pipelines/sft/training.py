"""Building TRL's trainer. Imports torch, transformers and TRL: import it where it is used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ja_instruct.pipelines.sft.cpu_trainer import CpuSFTTrainer

if TYPE_CHECKING:
    from datasets import Dataset

    from ja_instruct.pipelines.sft.parameters import SftParameters

logger = logging.getLogger(__name__)


class LossInProgressBar(ProgressCallback):  # type: ignore[misc]
    """Shows the latest loss in the progress bar, where the stock callback prints dictionaries."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("sft: training")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Name the bar of an evaluation."""
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("sft: evaluating")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the losses just logged behind the bar."""
        shown = {key: logs[key] for key in ("loss", "eval_loss") if key in (logs or {})}
        if state.is_world_process_zero and self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


def training_arguments(parameters: SftParameters) -> SFTConfig:
    """Return the trainer's arguments; every name not listed in the parameters keeps its default."""
    training = parameters.training
    on_cpu = parameters.device == "cpu"
    settings = training.model_dump(exclude={"report_to", "gradient_checkpointing"})
    if not parameters.eval_fraction:
        settings["eval_strategy"] = "no"
    return SFTConfig(
        **settings,
        output_dir=parameters.checkpoint_dir,
        max_length=parameters.max_seq_length,
        report_to=list(training.report_to) or "none",
        use_cpu=on_cpu,
        # unsloth brings its own, set when the adapter is made
        gradient_checkpointing=training.gradient_checkpointing and parameters.backend == "peft",
        # its default follows transformers' log level
        disable_tqdm=False,
        # pinned memory is for copies to a GPU
        dataloader_pin_memory=not on_cpu,
        # the samples are token ids already, cut to length
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def fit_to_processes(arguments: SFTConfig) -> SFTConfig:
    """Set what several processes need that train together, each on its GPU; one needs nothing.

    A PEFT model is no ``PreTrainedModel``, so the trainer would look for unused parameters in
    every step. All adapters are used, and the search goes together with checkpointing only
    where that is not reentrant. An out-of-memory error in one process would halve the batch
    there alone, while the others wait for its gradients.
    """
    if arguments.world_size > 1:
        arguments.ddp_find_unused_parameters = False
        if arguments.auto_find_batch_size:
            logger.warning("sft.training.auto_find_batch_size is off: it works on one GPU alone")
            arguments.auto_find_batch_size = False
    return arguments


def build_trainer(
    model: Any,
    tokenizer: Any,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    parameters: SftParameters,
) -> SFTTrainer:
    """Return a trainer over datasets of ``input_ids`` and ``labels``."""
    trainer_class = CpuSFTTrainer if parameters.device == "cpu" else SFTTrainer
    trainer = trainer_class(
        model=model,
        args=fit_to_processes(training_arguments(parameters)),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossInProgressBar())
    return trainer
