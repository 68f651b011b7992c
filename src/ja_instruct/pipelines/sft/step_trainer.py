"""TRL's ``SFTTrainer``, measured, sparing of padding, and not stopped by a batch too large.

Imports torch and TRL: import this module where it is used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.measuring import UtilizationMeter
from ja_instruct.pipelines.sft.micro_batches import (
    StepCollator,
    group_by_length,
    halves,
    packed,
    padded,
    target_count,
)

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ja_instruct.pipelines.sft.neftune import PackedNeftune
    from ja_instruct.pipelines.sft.packed_attention import TransformersPacking, UnslothPacking

logger = logging.getLogger(__name__)


class StepTrainer(SFTTrainer):  # type: ignore[misc]
    """``SFTTrainer`` that knows the samples of an optimizer step, and computes them in pieces.

    A batch is either padded, as TRL's collator makes it, or holds the ``samples`` of a whole step
    (``StepCollator``), which are arranged here. When memory runs out, what is computed at once is
    halved and the step begins anew: no step is lost and none changes, as each piece's loss is
    divided by the targets of the whole step.

    Attributes:
        tokens_per_batch: Of one piece of a step; None for padded batches.
        packing: Puts the samples of a piece into one row; None pads them.
        neftune: Noise for packed rows.
        backs_off: Whether to halve what does not fit.
        tokens: Non-padding tokens trained on so far.
        seconds: Time spent on training steps so far, without evaluations and checkpoints.
    """

    tokens_per_batch: int | None = None
    packing: TransformersPacking | UnslothPacking | None = None
    neftune: PackedNeftune | None = None
    backs_off = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the trainer; the attributes above are set on it."""
        super().__init__(*args, **kwargs)
        self.tokens: int = 0
        self.seconds: float = 0.0
        self._rows_max: int | None = None
        self._accumulated: list[tuple[Any, Any]] = []
        self._step_tokens: list[torch.Tensor | int] = []
        self._clock: float | None = None
        self._logged = (0, 0.0)
        self._meter = UtilizationMeter() if self.args.device.type == "cuda" else None

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute a batch's loss and gradients, in as many pieces as memory asks for."""
        self._run_clock()
        if "samples" in inputs and self.accelerator.num_processes == 1:
            # of several processes together the trainer has counted them
            num_items_in_batch = target_count(inputs)
        lost: list[tuple[Any, Any]] = []
        while True:
            try:
                for earlier, count in lost:
                    self._compute(model, earlier, count)
                loss = self._compute(model, inputs, num_items_in_batch)
                break
            except torch.OutOfMemoryError as error:
                if not self.backs_off:
                    raise
                self._halve(inputs, error)
            # not before here: the error's frames hold on to the step's tensors
            model.zero_grad()
            torch.cuda.empty_cache()
            lost = self._accumulated
        if self.accelerator.sync_gradients:
            self._accumulated = []
        else:
            self._accumulated.append((inputs, num_items_in_batch))
        self._step_tokens.append(_tokens_of(inputs))
        if loss.is_cuda and self._meter is not None:
            self._meter.sample()
        return loss

    def _compute(self, model: Any, inputs: dict[str, Any], count: Any) -> torch.Tensor:
        pieces = self.pieces(inputs)
        losses = []
        for number, piece in enumerate(pieces):
            if number < len(pieces) - 1:
                with self.accelerator.no_sync(model):
                    losses.append(self._compute_piece(model, piece, count))
            else:
                losses.append(self._compute_piece(model, piece, count))
        return torch.stack(losses).sum()

    def _compute_piece(self, model: Any, piece: dict[str, torch.Tensor], count: Any) -> Any:
        if "packed_seq_lengths" not in piece or self.packing is None:
            return super().training_step(model, piece, count)
        if self.neftune is not None:
            self.neftune.begin(piece["packed_seq_lengths"])
        try:
            return super().training_step(model, self.packing.begin(piece), count)
        finally:
            self.packing.end()
            if self.neftune is not None:
                self.neftune.end()

    def pieces(self, inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Return what is computed at once, one after the other, of a batch."""
        samples: Sequence[Mapping[str, torch.Tensor]] | None = inputs.get("samples")
        pad = self._tokenizer.pad_token_id
        if samples is None:
            return self._rows_of(inputs)
        groups = group_by_length(
            [len(sample["input_ids"]) for sample in samples],
            self.tokens_per_batch or 0,
            packing=self.packing is not None,
        )
        chosen = [[samples[position] for position in group] for group in groups]
        if self.packing is None:
            return [padded(group, pad) for group in chosen]
        return [packed(group, pad, multiple_of=self.packing.multiple_of) for group in chosen]

    def _rows_of(self, inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        rows = len(inputs["input_ids"])
        if self._rows_max is None or rows <= self._rows_max:
            return [dict(inputs)]
        return [piece for half in halves(inputs) for piece in self._rows_of(half)]

    def _halve(self, inputs: dict[str, Any], error: torch.OutOfMemoryError) -> None:
        """Lower what is computed at once, or say that a single sample is too long."""
        if "samples" in inputs:
            longest = max(len(sample["input_ids"]) for sample in inputs["samples"])
            tokens = self.tokens_per_batch or 0
            largest = max(piece["input_ids"].numel() for piece in self.pieces(inputs))
            if tokens <= longest or largest <= longest:
                raise _too_long(longest) from error
            self.tokens_per_batch = max(min(tokens, largest) // 2, longest)
            logger.warning(
                "out of memory: sft.training.tokens_per_batch %d -> %d; the step begins anew",
                tokens,
                self.tokens_per_batch,
            )
            return
        rows = max(len(piece["input_ids"]) for piece in self.pieces(inputs))
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
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the mean loss over all labelled tokens of the dataset, in nats.

        transformers' own takes the mean of the batches' means, which depends on their make-up.
        """
        self._stop_clock()
        model: Any = self._wrap_model(self.model, training=False)  # type: ignore[arg-type]
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        total = torch.zeros(2, dtype=torch.float64)
        samples = 0
        for inputs in dataloader:
            samples += len(inputs.get("samples", inputs["labels"]))
            for piece in self.pieces(inputs):
                count = float(target_count(piece))
                if not count:
                    continue
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

    def _evaluate_piece(self, model: Any, piece: dict[str, torch.Tensor]) -> float:
        is_packed = "packed_seq_lengths" in piece and self.packing is not None
        inputs = self.packing.begin(piece) if is_packed and self.packing else piece
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                loss: torch.Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        finally:
            if is_packed and self.packing:
                self.packing.end()
        return loss.item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what training has done and taken to an entry with a training loss."""
        if "loss" in logs:
            logs |= self._measure()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._stop_clock()
        super()._save_checkpoint(model, trial)

    def _run_clock(self) -> None:
        if self._clock is None:
            self._clock = time.perf_counter()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            if self.args.device.type == "cuda":
                torch.cuda.synchronize(self.args.device)
            self.seconds += time.perf_counter() - self._clock
            self._clock = None

    def _measure(self) -> dict[str, float]:
        self._stop_clock()
        self._run_clock()
        self._count()
        tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
        self._logged = (self.tokens, self.seconds)
        measured = {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        }
        if self.args.device.type == "cuda":
            measured["gpu_memory_gb"] = torch.cuda.max_memory_reserved(self.args.device) / 1e9
        if self._meter is not None:
            measured |= self._meter.read()
        return measured

    def totals(self) -> tuple[int, float]:
        """Return the tokens trained on and the seconds that it took, so far."""
        self._stop_clock()
        self._count()
        return self.tokens, self.seconds

    def _count(self) -> None:
        self.tokens += sum(int(count) for count in self._step_tokens)
        self._step_tokens.clear()

    def go_on_counting(self, tokens: int, seconds: float) -> None:
        """Take over what a run that was interrupted had counted."""
        self.tokens, self.seconds = tokens, seconds
        self._logged = (tokens, seconds)


def collator_for(tokens_per_batch: int | None) -> StepCollator | None:
    """Return the collator of whole steps; None for TRL's own, which pads."""
    return None if tokens_per_batch is None else StepCollator()


def _tokens_of(inputs: Mapping[str, Any]) -> torch.Tensor | int:
    """Return the non-padding tokens of a batch, not yet fetched from the device."""
    if "samples" in inputs:
        return sum(len(sample["input_ids"]) for sample in inputs["samples"])
    counted: torch.Tensor = inputs["attention_mask"].sum()
    return counted


def _too_long(tokens: int) -> InputError:
    return InputError(
        f"out of memory on a single sample of {tokens} tokens: nothing smaller can be computed; "
        f"lower sft.max_seq_length or sft.lora.lora_r, or use a GPU with more memory"
    )
