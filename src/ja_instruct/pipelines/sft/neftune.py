"""NEFTune's noise for packed rows. Imports torch: import this module where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class PackedNeftune:
    """Adds noise to embeddings by each sample's own length (NEFTune, arXiv:2310.05914).

    The noise is uniform within ``alpha / sqrt(length * width)``. transformers takes for the length
    that of the row, which with several samples in it would make the noise too small.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        """Attach to the embedding of a PEFT model."""
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None
        self._handle = (
            model.get_base_model().get_input_embeddings().register_forward_hook(self._add_noise)
        )

    def begin(self, lengths: torch.Tensor) -> None:
        """Note the lengths of the next row's samples, (samples,)."""
        self._lengths = torch.repeat_interleave(lengths, lengths)

    def end(self) -> None:
        """The row is done, its gradients included: checkpointing embeds nothing again."""
        self._lengths = None

    def remove(self) -> None:
        """Detach."""
        self._handle.remove()

    def _add_noise(
        self, module: Any, inputs: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        if self._lengths is None or not module.training:
            return None
        return output + noise(self._lengths.to(output.device), output, self._alpha)


def noise(
    lengths: torch.Tensor,
    embedded: torch.Tensor,
    alpha: float,
    draw: Callable[[torch.Tensor], torch.Tensor] = torch.rand_like,
) -> torch.Tensor:
    """Return the noise of a row.

    Args:
        lengths: Of each token's sample, (tokens,).
        embedded: (1, tokens, width).
        alpha: NEFTune's.
        draw: Uniform numbers from 0 to 1, of a tensor's shape.
    """
    bound = alpha / torch.sqrt(lengths * embedded.shape[-1])
    return (2 * draw(embedded) - 1) * bound[None, :, None].to(embedded.dtype)
