"""One answer, as every engine gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ja_instruct.engine.parameters import EngineParameters
from ja_instruct.prompts import PromptParameters, end_of_turn

# what torch and transformers raise for one input: memory, shapes, ids out of range
PROMPT_ERRORS = (RuntimeError, ValueError, IndexError)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: The new tokens as text, without special tokens, stripped.
        prompt_tokens: Length of the prompt.
        new_tokens: Length of the answer, the end-of-sequence token included.
        finished: Whether the model ended the answer itself.
        seconds: Wall time. Where several answers are generated at the same time, what has passed
            since the one before was finished: all answers' add up to what generating them took.
        error: Why there is no answer; empty where there is one.
        weights: Those that its tokens were computed with, where the engine has several kinds.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool
    seconds: float
    error: str = ""
    weights: str = ""


@dataclass(frozen=True)
class AnswerDecoder:
    """How answers end and what text they are, for one tokenizer and one format of prompts.

    Attributes:
        tokenizer: The model's.
        ends: Tokens with which the model ends an answer itself.
        stops_at_turn: Whether a turn's end is one of them.
        bad_words_ids: Token sequences that may not be generated.
    """

    tokenizer: Any
    ends: tuple[int, ...]
    stops_at_turn: bool
    bad_words_ids: list[list[int]]

    @classmethod
    def of(
        cls, tokenizer: Any, parameters: EngineParameters, prompts: PromptParameters
    ) -> AnswerDecoder:
        """Return the form that the parameters ask for; ``prompts`` tells which turns end."""
        turn = end_of_turn(tokenizer) if prompts.format == "chat_template" else None
        return cls(
            tokenizer,
            tuple(token for token in (tokenizer.eos_token_id, turn) if token is not None),
            turn is not None,
            [
                tokenizer(word, add_special_tokens=False)["input_ids"]
                for word in parameters.bad_words
                if parameters.bad_words_in == "tokens"
            ],
        )

    def answer(self, new_ids: list[int], prompt_tokens: int, seconds: float) -> Answer:
        """Return the answer that new tokens are."""
        finished = bool(new_ids) and new_ids[-1] in self.ends
        said = new_ids[:-1] if finished else new_ids
        return Answer(
            text=self.tokenizer.decode(said, skip_special_tokens=True).strip(),
            prompt_tokens=prompt_tokens,
            new_tokens=len(new_ids),
            finished=finished,
            seconds=seconds,
        )


def failed_answer(error: Exception, seconds: float) -> Answer:
    """Return the answer of a prompt that raised an error."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Answer("", 0, 0, finished=False, seconds=seconds, error=reason)
