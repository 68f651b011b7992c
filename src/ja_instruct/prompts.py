"""The texts a model sees: one place for training and inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from ja_instruct.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class PromptParameters(Parameters):
    """The recipe's prompt texts (``conf/base/parameters_prompts.yml``)."""

    train_prompt: str = Field(description="A training sample: two {} for question and answer")
    few_shot_header: str = Field(description="Opens the prompt, before the shots")
    few_shot_example: str = Field(description="One shot, with {input} and {output}")
    task_prompt: str = Field(description="Closes the prompt, with {input}")

    @field_validator("train_prompt")
    @classmethod
    def _ends_with_answer(cls, value: str) -> str:
        if value.count("{}") != 2 or not value.endswith("{}"):
            raise ValueError(
                "train_prompt must hold {} twice, for question and answer, the second at its end"
            )
        return value

    @field_validator("few_shot_example", "task_prompt")
    @classmethod
    def _holds_input(cls, value: str) -> str:
        if "{input}" not in value:
            raise ValueError("must hold {input}, the place of the question")
        return value


def training_prompt(prompts: PromptParameters, instruction: str) -> str:
    """Return a training sample up to where the answer begins.

    >>> prompts = PromptParameters(
    ...     train_prompt="質問:{} 回答:{}", few_shot_header="", few_shot_example="{input}{output}",
    ...     task_prompt="{input}",
    ... )
    >>> training_prompt(prompts, "首都は?")
    '質問:首都は? 回答:'
    """
    return prompts.train_prompt.format(instruction, "")


def few_shot_prompt(
    prompts: PromptParameters, task: str, shots: Sequence[Mapping[str, Any]]
) -> str:
    """Return the prompt of one task: header, shots, task.

    Args:
        prompts: The texts.
        task: The task's ``input``.
        shots: Records with ``input`` and ``output`` in the order in which they appear; the
            recipe puts the most similar one last, next to the task.

    >>> prompts = PromptParameters(
    ...     train_prompt="{}{}", few_shot_header="例:", few_shot_example="問{input}答{output}。",
    ...     task_prompt="問{input}答",
    ... )
    >>> few_shot_prompt(prompts, "三", [{"input": "一", "output": "二"}])
    '例:問一答二。問三答'
    """
    examples = "".join(
        prompts.few_shot_example.format(input=shot["input"], output=shot["output"])
        for shot in shots
    )
    return prompts.few_shot_header + examples + prompts.task_prompt.format(input=task)
