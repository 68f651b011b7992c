"""NEFTune for packed rows. Imports torch: import this module where it is used.

transformers scales the noise by the length of a row, which is too small for a row of several
samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PackedNeftune:
    """Adds noise to embeddings by the length of each sample (NEFTune, arXiv:2310.05914).

    The noise is uniform within ``± alpha / sqrt(length * width)``.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        """Attach a hook to the input embedding of a PEFT model."""
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None
        model.get_base_model().get_input_embeddings().register_forward_hook(self._add_noise)

    def begin(self, lengths: torch.Tensor) -> None:
        """Set the lengths of the next row's samples, (samples,)."""
        self._lengths = torch.repeat_interleave(lengths, lengths)

    def end(self) -> None:
        """Add no more noise; the row's gradients are computed."""
        self._lengths = None

    def _add_noise(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        if self._lengths is None or not module.training:
            return None
        return output + noise(self._lengths.to(output.device), output, self._alpha)


def noise(lengths: torch.Tensor, embedded: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the noise of the row ``embedded``, (1, tokens, width).

    ``lengths``, (tokens,), has the length of each token's sample.
    """
    bound = alpha / torch.sqrt(lengths * embedded.shape[-1])
    return (2 * torch.rand_like(embedded) - 1) * bound[None, :, None].to(embedded.dtype)
