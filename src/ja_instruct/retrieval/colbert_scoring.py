"""ColBERT's score of a query for every text of a pool, on embeddings without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def score_packed(query: Tensor, embeddings: Tensor, lengths: Tensor, window: int) -> Tensor:
    """Sum, over the query's tokens, the best dot product with any token of each text.

    RAGatouille does the same on texts that are all padded to the longest. Its rows of padding are
    zero and take part in the maximum, so that a token never scores below 0 in a text shorter than
    the window; that is kept.

    Args:
        query: Of shape (query tokens, dimension).
        embeddings: The tokens of all texts one after the other, of shape (tokens, dimension).
        lengths: The tokens of each text, of shape (texts,).
        window: The tokens of a text that has no padding.

    Returns:
        The scores, of shape (texts,), summed in float32 whatever the embeddings are.

    >>> import torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> score_packed(torch.eye(2), embeddings, torch.tensor([2, 1]), window=3).tolist()
    [3.0, 0.0]
    """
    import torch

    similarities = (embeddings @ query.to(embeddings.dtype).T).float()
    best = torch.segment_reduce(similarities, "max", lengths=lengths, axis=0)
    padded = (lengths < window)[:, None]
    return torch.where(padded, best.clamp(min=0), best).sum(-1)
