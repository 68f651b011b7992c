"""The typed parameters of the index."""

from pydantic import Field

from ja_instruct.config import Parameters
from ja_instruct.retrieval.index import Retriever


class RagIndexParameters(Parameters):
    """Section ``rag_index`` of the parameters."""

    retriever: Retriever = Field(
        description=(
            "colbert: search by token embeddings, with a model; bm25: by character bigrams; "
            "hybrid: both rankings, fused."
        )
    )
    batch_size: int = Field(ge=1, description="Questions in one forward pass of the encoder.")
    max_document_tokens: int | None = Field(
        ge=4,
        description=(
            "Tokens of a question that are encoded, special ones included; null is RAGatouille's "
            "choice, the encoder's window."
        ),
    )
