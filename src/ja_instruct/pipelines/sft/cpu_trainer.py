"""The trainer on a CPU. Imports torch and TRL: import this module where it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ja_instruct.pipelines.sft.step_trainer import StepTrainer


class CpuStepTrainer(StepTrainer):
    """``StepTrainer`` with the loss in plain PyTorch.

    TRL 1.15 computes the loss in a Triton kernel, which a CPU cannot run. The loss is the same, and
    here too the language-model head is computed only at labelled positions: for a vocabulary of
    262,144 it has more weights than the rest of a 270M model.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the mean negative log-likelihood of the labelled tokens, in nats.

        ``inputs`` has ``input_ids`` and ``labels``, each (batch, length), and ``attention_mask``
        or, for packed rows, ``position_ids``. The sum is divided by ``num_items_in_batch``; None
        counts the labelled tokens of the batch.
        """
        if return_outputs:
            raise ValueError("CpuStepTrainer computes no full logits, so it cannot return outputs")
        causal = model.get_base_model()
        hidden = causal.base_model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs.get("position_ids"),
            use_cache=False,
        ).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        counted = labels != -100
        targets = labels[counted]
        logits = causal.get_output_embeddings()(hidden[counted]).float()
        # Gemma 2's
        softcap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        mode = "train" if model.training else "eval"
        correct = (logits.argmax(dim=-1) == targets).float().mean()
        self._metrics[mode]["mean_token_accuracy"].append(correct.item())
        total = functional.cross_entropy(logits, targets, reduction="sum")
        return total / (targets.numel() if num_items_in_batch is None else num_items_in_batch)
