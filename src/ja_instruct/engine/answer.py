"""An answer, and how token ids become one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ja_instruct.control_tokens import ControlTokens
from ja_instruct.prompts import answer_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.engine.parameters import EngineParameters

# What torch and transformers raise for a single input: memory, shapes, ids out of range
PROMPT_ERRORS = (RuntimeError, ValueError, IndexError)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: The new tokens as text, without special tokens, stripped.
        prompt_tokens: Length of the prompt.
        new_tokens: Length of the answer, including the token that ends it.
        finished: Whether the model ended the answer itself.
        seconds: Wall time since the previous answer was finished, so that the sum over all answers
            is the time that generation took.
        error: Why there is no answer, or an empty string.
        weights: The kind of weights that computed it, for engines that have several.
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
    """Turns token ids into answers.

    Attributes:
        control: Encodes prompts; the same for all, as it may make a tokenizer of its own.
        stop_ids: Tokens with which an answer ends: those of training, and those of the model.
        bad_words_ids: Token sequences that must not be generated.
    """

    control: ControlTokens
    stop_ids: tuple[int, ...]
    bad_words_ids: list[list[int]]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        parameters: EngineParameters,
        own_ends: Iterable[int],
        *,
        stop_at_end_of_turn: bool,
    ) -> Self:
        """Return the decoder of a model's tokenizer.

        ``own_ends`` are the tokens with which the model's ``generate`` ends by default.

        Raises:
            InputError: ``stop_at_end_of_turn`` is set, but the tokenizer's chat template is missing
                or unusable.
        """
        control = ControlTokens(tokenizer)
        words = parameters.bad_words if parameters.bad_words_in == "tokens" else ()
        taught = answer_ends(tokenizer, stop_at_end_of_turn=stop_at_end_of_turn)
        banned = control.encode([control.mark(word) for word in words], add_special_tokens=False)
        return cls(
            control,
            tuple(dict.fromkeys([*taught, *own_ends])),
            # a word of characters that the tokenizer leaves out has no token
            [ids for ids in banned if ids],
        )

    def decode_timed(
        self,
        results: Iterable[tuple[int, list[int] | Exception]],
        prompts: Sequence[Sequence[int]],
        weights: str = "",
    ) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer for each result, with the seconds since the one before.

        A result is the position of a prompt, with its answer's token ids or its error.
        """
        before = time.perf_counter()
        for position, result in results:
            now = time.perf_counter()
            seconds, before = now - before, now
            if isinstance(result, Exception):
                reason = f"{type(result).__name__}: {result}".splitlines()[0]
                yield position, Answer("", 0, 0, finished=False, seconds=seconds, error=reason)
                continue
            finished = bool(result) and result[-1] in self.stop_ids
            kept = result[:-1] if finished else result
            yield (
                position,
                Answer(
                    text=str(self.control.tokenizer.decode(kept, skip_special_tokens=True)).strip(),
                    prompt_tokens=len(prompts[position]),
                    new_tokens=len(result),
                    finished=finished,
                    seconds=seconds,
                    weights=weights,
                ),
            )
