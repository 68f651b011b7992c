"""TRL's ``SFTTrainer`` with measurements, little padding, and a retry when memory runs out.

transformers' ``auto_find_batch_size`` restarts the whole training with other optimizer steps; here
one step is computed again in smaller pieces. Imports torch and TRL: import it where it is used.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from ja_instruct.disk_errors import writing
from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.checkpoints import is_complete
from ja_instruct.pipelines.sft.measuring import TrainingMeter
from ja_instruct.pipelines.sft.micro_batches import (
    group_by_length,
    packed,
    padded,
    split_rows,
    target_count,
)
from ja_instruct.pipelines.sft.neftune import PackedNeftune
from ja_instruct.pipelines.sft.packed_attention import Packing

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Piece = dict[str, torch.Tensor]
Count = torch.Tensor | int | None

# where a checkpoint's state has the sums, beside the states of the callbacks
SUMS = "StepTrainer"


class StepTrainer(SFTTrainer):  # type: ignore[misc]
    """``SFTTrainer`` that computes an optimizer step in pieces.

    A batch is either padded by TRL's collator, or has the ``samples`` of a whole step
    (``collate_step``), which are arranged here. When memory runs out, the pieces are halved and the
    step begins again. The optimizer's steps stay the same, as the loss of each piece is divided by
    the targets of the whole step.

    Attributes:
        tokens_per_batch: Tokens of a piece at most; None for padded batches.
        packing: Puts the samples of a piece into one row; None pads them.
        neftune: Noise for packed rows.
        backs_off: Whether to halve the pieces when memory runs out.
        meter: Tokens and seconds of the training steps.
    """

    tokens_per_batch: int | None = None
    packing: Packing | None = None
    neftune: PackedNeftune | None = None
    backs_off = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the trainer; the attributes above are set on it."""
        super().__init__(*args, **kwargs)
        self.meter = TrainingMeter(self.args.device)
        self._rows_max: int | None = None
        self._accumulated: list[tuple[Batch, Count]] = []
        self._saved_sums: dict[str, Any] = {}
        self._earlier_seconds = 0.0
        self._started = 0.0

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Count = None
    ) -> torch.Tensor:
        """Compute the loss and the gradients of a batch."""
        self.meter.start()
        if "samples" in inputs and self.accelerator.num_processes == 1:
            # with several processes the trainer has counted the targets of all of them
            num_items_in_batch = target_count(inputs)
        loss = self._compute_until_it_fits(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._accumulated = []
        else:
            self._accumulated.append((inputs, num_items_in_batch))
        # without padding; a tensor stays on its device
        if "samples" in inputs:
            self.meter.add(sum(len(sample["input_ids"]) for sample in inputs["samples"]))
        else:
            self.meter.add(inputs["attention_mask"].sum())
        return loss

    def _compute_until_it_fits(self, model: nn.Module, inputs: Batch, count: Count) -> torch.Tensor:
        lost: list[tuple[Batch, Count]] = []
        while True:
            try:
                for earlier, earlier_count in lost:
                    self._compute(model, earlier, earlier_count)
                return self._compute(model, inputs, count)
            except torch.OutOfMemoryError as error:
                if not self.backs_off:
                    raise
                self._halve(inputs, error)
            # after the handler, as the error's frames hold on to the step's tensors
            model.zero_grad()
            torch.cuda.empty_cache()
            lost = self._accumulated

    def _compute(self, model: nn.Module, inputs: Batch, count: Count) -> torch.Tensor:
        pieces = self.pieces(inputs)
        losses = []
        for number, piece in enumerate(pieces, start=1):
            is_last = number == len(pieces)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                losses.append(self._compute_piece(model, piece, count))
        return torch.stack(losses).sum()

    def _compute_piece(self, model: nn.Module, piece: Piece, count: Count) -> torch.Tensor:
        with self._prepared(piece) as inputs:
            loss: torch.Tensor = super().training_step(model, inputs, count)
        return loss

    @contextmanager
    def _prepared(self, piece: Piece) -> Iterator[Piece]:
        """Yield the model's inputs; for a packed row its masks and its noise are in place."""
        if self.packing is None or "packed_seq_lengths" not in piece:
            yield piece
            return
        if self.neftune is not None:
            self.neftune.begin(piece["packed_seq_lengths"])
        try:
            yield self.packing.begin(piece)
        finally:
            self.packing.end()
            if self.neftune is not None:
                self.neftune.end()

    def pieces(self, inputs: Batch) -> list[Piece]:
        """Return the parts of a batch that are computed one after the other."""
        if "samples" not in inputs:
            return [dict(inputs)] if self._rows_max is None else split_rows(inputs, self._rows_max)
        samples: Sequence[Mapping[str, torch.Tensor]] = inputs["samples"]
        lengths = [len(sample["input_ids"]) for sample in samples]
        budget = self.tokens_per_batch or 0
        groups = group_by_length(lengths, budget, packing=self.packing is not None)
        chosen = [[samples[position] for position in group] for group in groups]
        pad = self._tokenizer.pad_token_id
        if self.packing is None:
            return [padded(group, pad) for group in chosen]
        return [packed(group, pad, multiple_of=self.packing.multiple_of) for group in chosen]

    def _halve(self, inputs: Batch, error: torch.OutOfMemoryError) -> None:
        """Halve the pieces; raise ``InputError`` when they are single samples already."""
        pieces = self.pieces(inputs)
        if "samples" in inputs:
            longest = max(len(sample["input_ids"]) for sample in inputs["samples"])
            tokens = self.tokens_per_batch or 0
            used = min(tokens, max(piece["input_ids"].numel() for piece in pieces))
            if used <= longest:
                raise _too_long(longest) from error
            self.tokens_per_batch = max(used // 2, longest)
            logger.warning(
                "out of memory: sft.training.tokens_per_batch %d -> %d; the step begins again",
                tokens,
                self.tokens_per_batch,
            )
            return
        rows = max(len(piece["input_ids"]) for piece in pieces)
        if rows == 1:
            raise _too_long(inputs["input_ids"].shape[1]) from error
        self._rows_max = rows // 2
        logger.warning(
            "out of memory: %d samples at once -> %d; the optimizer's batch stays as it is",
            rows,
            self._rows_max,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader[Batch],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the mean loss over all labelled tokens of the dataset, in nats.

        transformers returns the mean of the batches' means, which depends on the batch size.
        """
        self.meter.pause()
        model: Any = self._wrap_model(self.model, training=False)  # type: ignore[arg-type]
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        total = torch.zeros(2, dtype=torch.float64)
        samples = 0
        for inputs in dataloader:
            samples += len(inputs.get("samples", inputs["labels"]))
            for piece in self.pieces(inputs):
                count = float(target_count(piece))
                if count:
                    total += torch.tensor([self._evaluate_piece(model, piece) * count, count])
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )
        total = self.accelerator.reduce(total.to(self.args.device, torch.float32), "sum")
        loss = (total[0] / total[1]).item() if total[1] else float("nan")
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss},
            num_samples=samples,
        )

    def _evaluate_piece(self, model: nn.Module, piece: Piece) -> float:
        with self._prepared(piece) as inputs, torch.no_grad(), self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens, seconds and the GPU's figures to an entry with a training loss.

        The runtime and the speeds of the last entry are those of the whole training, of which
        transformers measures the part after the checkpoint.
        """
        if "loss" in logs:
            logs |= self.meter.entry()
        if "train_runtime" in logs and self._earlier_seconds:
            measured = logs["train_runtime"]
            logs["train_runtime"] = round(measured + self._earlier_seconds, 4)
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * measured / logs["train_runtime"], 3)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint with the sums since the start and since the last log entry.

        transformers begins all sums at 0 when it resumes.
        """
        states: Any = self.state.stateful_callbacks
        states[SUMS] = {
            "loss": self._total_loss_scalar,
            "loss_since_entry": self.accelerator.reduce(self._tr_loss, "mean").item(),
            "step_of_entry": self._globalstep_last_logged,
            "metrics_since_entry": dict(self._metrics["train"]),
            # TRL adds these metrics to the next entry unless the model has been evaluated since
            "is_training": model.training,
            "tokens_seen": self._total_train_tokens,
            "seconds": self._earlier_seconds + time.monotonic() - self._started,
            "meter": self.meter.state(),
        }
        step = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoint = Path(self._get_output_dir(trial=trial)) / step
        try:
            with writing(checkpoint):
                super()._save_checkpoint(model, trial)
        except InputError:
            if not is_complete(checkpoint):
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise

    def _load_callback_state(self) -> None:
        states: Any = self.state.stateful_callbacks
        # transformers warns of a name that is not a callback's
        self._saved_sums = states.pop(SUMS, {})
        super()._load_callback_state()

    def begin_sums(self) -> None:
        """Continue the sums of the checkpoint, once transformers has set its own to 0."""
        self._started = time.monotonic()
        if not self._saved_sums:
            return
        self._total_loss_scalar = self._saved_sums["loss"]
        self._tr_loss.fill_(self._saved_sums["loss_since_entry"])
        self._globalstep_last_logged = self._saved_sums["step_of_entry"]
        self._metrics["train"].update(self._saved_sums["metrics_since_entry"])
        model: Any = self.model
        model.train(self._saved_sums["is_training"])
        self._total_train_tokens = self._saved_sums["tokens_seen"]
        self._earlier_seconds = self._saved_sums["seconds"]
        self.meter.resume(**self._saved_sums["meter"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks at this only after a step, which a finished training must not add
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)


def _too_long(tokens: int) -> InputError:
    return InputError(
        f"out of memory on a single sample of {tokens} tokens: nothing smaller can be computed; "
        f"lower sft.max_seq_length or sft.lora.lora_r, or use a GPU with more memory"
    )
