"""Prompts and training samples as text, in one place for training and inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ja_instruct.config import Parameters
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    few_shot_header: str = Field(description="The prompt before the examples")
    few_shot_example: str = Field(description="One example, with {input} and {output}")
    task_prompt: str = Field(description="The prompt after the examples, with {input}")

    @field_validator("train_prompt")
    @classmethod
    def _ends_with_answer(cls, value: str) -> str:
        if value.count("{}") != 2 or not value.endswith("{}"):
            raise ValueError(
                "train_prompt must contain {} twice, for question and answer, the second at its end"
            )
        return value

    @field_validator("few_shot_example", "task_prompt")
    @classmethod
    def _holds_input(cls, value: str) -> str:
        if "{input}" not in value:
            raise ValueError("must contain {input}, the place of the question")
        return value


def training_prompt(prompts: PromptParameters, instruction: str) -> str:
    """Return a training sample up to its answer."""
    return prompts.train_prompt.format(instruction, "")


def training_sample(
    prompts: PromptParameters,
    question: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[str, str]:
    """Return prompt and completion of a training sample, in the format of ``prompts``.

    BOS before the prompt, and EOS after a completion that is not empty, are added by the encoding.
    The completion of ``chat_template`` includes the end of the model's turn, except for an empty
    answer. Only that format needs the tokenizer.

    Raises:
        InputError: The format is ``chat_template`` and the template cannot be used.
        ValueError: The format is ``chat_template`` and there is no tokenizer.
    """
    if prompts.format != "chat_template":
        return training_prompt(prompts, question), answer
    if tokenizer is None:
        raise ValueError("the format 'chat_template' needs the tokenizer")
    return _chat_sample(tokenizer, question, answer)


def inference_prompt(
    prompts: PromptParameters,
    task: str,
    examples: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """Return the prompt of one task, in the format of ``prompts``; tokenization adds BOS.

    Without examples, ``training_prompt`` and ``chat_template`` give the prompt of training. The
    examples of ``training_prompt`` are whole training samples, each with its EOS; those of
    ``chat_template`` are earlier turns of the conversation. All have ``input`` and ``output``, and
    appear in the order given.

    Raises:
        InputError: The tokenizer lacks what the format needs: EOS, or a template it can use.
    """
    if prompts.format == "chat_template":
        return _chat_prompt(tokenizer, task, examples)
    if prompts.format == "training_prompt":
        end = eos_text(tokenizer)
        samples = (
            training_prompt(prompts, example["input"]) + example["output"] + end
            for example in examples
        )
        return "".join(samples) + training_prompt(prompts, task)
    shown = "".join(
        prompts.few_shot_example.format(input=example["input"], output=example["output"])
        for example in examples
    )
    return prompts.few_shot_header + shown + prompts.task_prompt.format(input=task)


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
        InputError: ``stop_at_end_of_turn`` is set, but the chat template is missing or unusable.
    """
    turn = end_of_turn(tokenizer) if stop_at_end_of_turn else None
    return tuple(token for token in (tokenizer.eos_token_id, turn) if token is not None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token with which the chat template ends the model's turn.

    It is an added token, special or not. It is None if the turn ends with EOS or with ordinary
    text: then EOS alone ends an answer.

    Raises:
        InputError: There is no template, or it cannot be used.
    """
    answer = "はい"
    _, completion = _chat_sample(tokenizer, "質問", answer)
    after = completion[completion.index(answer) + len(answer) :]
    ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"]
    # Gemma's tokenizer has line breaks and spaces among its added tokens
    added = {token for text, token in tokenizer.get_added_vocab().items() if text.strip()}
    first = next((token for token in ids if token in added), None)
    return None if first == tokenizer.eos_token_id else first


def _chat_sample(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> tuple[str, str]:
    prompt = _chat_prompt(tokenizer, question, [])
    if not answer.strip():
        return prompt, ""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    whole = _render(tokenizer, turns, add_generation_prompt=False)
    completion = whole.removeprefix(prompt)
    # a template may trim an answer, but not rewrite it
    if not whole.startswith(prompt) or answer.strip() not in completion:
        raise _unusable_template(
            tokenizer,
            f"writes the question '{question[:40]}' differently with and without its answer, or "
            f"changes the answer, so that training and inference would differ",
        )
    # the encoding adds EOS, which some templates write too, perhaps with a line break
    if completion.rstrip().endswith(eos_text(tokenizer)):
        completion = completion.rstrip().removesuffix(eos_text(tokenizer))
    return prompt, completion


def _chat_prompt(
    tokenizer: PreTrainedTokenizerBase, task: str, examples: Sequence[Mapping[str, Any]]
) -> str:
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": example["input"]})
        turns.append({"role": "assistant", "content": example["output"]})
    turns.append({"role": "user", "content": task})
    return _render(tokenizer, turns, add_generation_prompt=True)


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise _unusable_template(tokenizer, "is missing")
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise _unusable_template(tokenizer, f"fails: {error}") from error
    return _without_added_bos(str(text), tokenizer)


def _without_added_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return ``text`` without the BOS that the tokenizer adds, and without blanks before it."""
    from_bos = text.lstrip()
    if not tokenizer.bos_token or not from_bos.startswith(tokenizer.bos_token):
        return text
    if tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return from_bos
    return from_bos.removeprefix(tokenizer.bos_token)


def _unusable_template(tokenizer: PreTrainedTokenizerBase, fault: str) -> InputError:
    return InputError(
        f"prompts.format is 'chat_template', but the chat template of the tokenizer at "
        f"'{tokenizer.name_or_path}' {fault}. Set prompts.format to 'training_prompt' or "
        f"'recipe', or give another model or, where it has no template of its own, another "
        f"quantization.chat_template and quantize again"
    )
