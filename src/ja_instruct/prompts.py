"""Prompts and training samples as text, in one place for training and inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ja_instruct.chat_template import ChatTemplate, Span, Turn, join_system
from ja_instruct.config import Parameters, parse_placeholders
from ja_instruct.control_tokens import ControlTokens
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase


class PromptParameters(Parameters):
    """Format and texts of the prompts (``conf/base/parameters_prompts.yml``)."""

    format: Literal["recipe", "training_prompt", "chat_template"] = Field(
        description=(
            "recipe: train_prompt in training, few_shot_* and task_prompt at inference; "
            "training_prompt: train_prompt in both; chat_template: the model's template in both"
        )
    )
    train_prompt: str = Field(description="A training sample, with two {} for question and answer")
    few_shot_header: str = Field(description="The prompt before the examples, as it is")
    few_shot_example: str = Field(description="One example, with {input} and {output}")
    task_prompt: str = Field(description="The prompt after the examples, with {input}")

    @field_validator("train_prompt")
    @classmethod
    def _ends_with_answer(cls, value: str) -> str:
        if len(parse_placeholders(value, [""])) != 2 or not value.endswith("{}"):
            raise ValueError(
                "must contain {} twice, for question and answer, the second at its end"
            )
        return value

    @field_validator("few_shot_example")
    @classmethod
    def _holds_question_and_answer(cls, value: str) -> str:
        parse_placeholders(value, ["input", "output"])
        return value

    @field_validator("task_prompt")
    @classmethod
    def _holds_question(cls, value: str) -> str:
        parse_placeholders(value, ["input"])
        return value


@dataclass(frozen=True)
class TrainingSample:
    """A training sample as text; BOS and the last EOS are added by the encoding.

    Attributes:
        prompt: All text before the answer.
        completion: The answer, in ``chat_template`` with the end of the model's turn. It is empty
            for an empty answer.
        earlier_answers: Start and end, in characters of ``prompt``, of each earlier answer with
            what ends it.
    """

    prompt: str
    completion: str
    earlier_answers: tuple[Span, ...] = ()


class PromptBuilder:
    """Writes training samples and prompts in the format of ``prompts``, for one tokenizer.

    In the texts of questions, answers and examples, what spells a control token is marked
    (``ControlTokens``), so that ``control.encode`` returns ids of text for it.
    """

    def __init__(self, prompts: PromptParameters, tokenizer: PreTrainedTokenizerBase) -> None:
        """Prepare the format.

        Raises:
            InputError: The format is ``chat_template`` and the template cannot be used.
        """
        self._prompts = prompts
        self._tokenizer = tokenizer
        self.control = ControlTokens(tokenizer)
        self._mark = self.control.mark
        is_chat = prompts.format == "chat_template"
        self._template = ChatTemplate(tokenizer) if is_chat else None

    def sample(self, question: str, answer: str, history: Iterable[Turn] = ()) -> TrainingSample:
        """Return a training sample.

        ``history`` are the turns before the question: an optional system turn, then user and
        assistant in turn. In the formats without turns each earlier exchange is a whole sample with
        its EOS, and the text of the system turn goes before the first question.

        Raises:
            InputError: The chat template cannot be used, or changes a text; or an earlier answer
                would need EOS, and the tokenizer has none.
        """
        turns = [
            {"role": turn["role"], "content": self._mark(turn["content"])}
            for turn in (*history, {"role": "user", "content": question})
        ]
        answer = self._mark(answer)
        if self._template is None:
            prompt, spans = self._exchanges(turns)
            return TrainingSample(prompt, answer, spans)
        prompt, found = self._template.prompt(turns)
        completion = self._template.completion(prompt, turns, answer)
        return TrainingSample(prompt, completion, tuple(found))

    def prompt(self, task: str, examples: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt of one task; tokenization adds BOS.

        Without examples, ``training_prompt`` and ``chat_template`` give the prompt of training. The
        examples of ``training_prompt`` are whole training samples, each with its EOS; those of
        ``chat_template`` are earlier turns of the conversation. All have ``input`` and ``output``,
        and appear in the order given.

        Raises:
            InputError: The tokenizer lacks what the format needs: EOS, or a template it can use.
        """
        task = self._mark(task)
        pairs = [(self._mark(one["input"]), self._mark(one["output"])) for one in examples]
        if self._prompts.format == "recipe":
            texts = self._prompts
            shown = [texts.few_shot_example.format(input=one, output=two) for one, two in pairs]
            return "".join([texts.few_shot_header, *shown, texts.task_prompt.format(input=task)])
        turns = [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        turns.append({"role": "user", "content": task})
        if self._template is None:
            return self._exchanges(turns)[0]
        return self._template.prompt(turns)[0]

    def _exchanges(self, turns: Sequence[Turn]) -> tuple[str, tuple[Span, ...]]:
        """Return turns as training samples, the last without its answer, and the answers' spans."""
        text, system, spans = "", "", []
        for turn in turns:
            content = turn["content"]
            if turn["role"] == "system":
                system = content
            elif turn["role"] == "user":
                question = join_system(system, content) if system else content
                text += training_prompt(self._prompts, question)
                system = ""
            else:
                start = len(text)
                text += content + eos_text(self._tokenizer)
                if content:
                    spans.append((start, len(text)))
        return text, tuple(spans)


def training_prompt(prompts: PromptParameters, instruction: str) -> str:
    """Return a training sample up to its answer."""
    return prompts.train_prompt.format(instruction, "")


def eos_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the end-of-sequence token; raise ``InputError`` if there is none."""
    if tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer at '{tokenizer.name_or_path}' has no end-of-sequence token, so that "
            f"no answer would end; set 'eos_token' in its tokenizer_config.json"
        )
    return str(tokenizer.eos_token)


def answer_ends(
    tokenizer: PreTrainedTokenizerBase, *, stop_at_end_of_turn: bool
) -> tuple[int, ...]:
    """Return the ids of the tokens with which training ends an answer: EOS, and an end of turn.

    Raises:
        InputError: ``stop_at_end_of_turn`` is set, but the chat template cannot be used.
    """
    turn = ChatTemplate(tokenizer).end_of_turn() if stop_at_end_of_turn else None
    return tuple(token for token in (tokenizer.eos_token_id, turn) if token is not None)
