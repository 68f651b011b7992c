"""A tokenizer's chat template, whose prompts are exactly what precedes an answer in training."""

from __future__ import annotations

import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

from ja_instruct.errors import InputError
from ja_instruct.text import common_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

# Templates such as Llama 3.2's write today's date, by which training and inference would differ.
# They get the date that Llama 3.1's has by default.
DATE = datetime.date(2024, 7, 26)
# Answers whose beginning must not be part of the prompt's last token
PROBES = ("はい", "Yes")
# Characters, or tokens, shown on each side of a difference
SHOWN = 30

Turn = dict[str, str]
Span = tuple[int, int]


class _Frame(NamedTuple):
    """What the template writes around turns that an answer follows."""

    #: Before the first turn, between two, and after the last one.
    around: list[str]
    #: After the generation prompt: text, which ends the prompt, such as an empty thinking block;
    block: str
    #: or only blanks, with which the answer begins.
    blanks: str
    #: After the answer.
    tail: str


class ChatTemplate:
    """Renders conversations for training and inference.

    A template may write something between the generation prompt and an answer: Qwen 3's writes an
    empty thinking block. It becomes part of the prompt in both, so that answers do not contain it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the template with a question and its answer.

        Raises:
            InputError: It is missing, fails, changes an answer, or the prompt of a question is not
                the beginning of the sample with its answer.
        """
        self._tokenizer = tokenizer
        self._frame = cache(self._compute_frame)
        self._check_ids()

    def prompt(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """Return the prompt of turns of which the last is the user's, and where its answers are.

        The second value has the start and end, in characters of the prompt, of each turn of the
        assistant with the template's end of it. BOS is left out if the tokenizer adds it.

        Raises:
            InputError: The template fails, or changes a text.
        """
        turns = self._with_system(turns)
        frame = self._frame(tuple(turn["role"] for turn in turns))
        text = self._render(turns, add_generation_prompt=True)
        spans = self._answers(text, turns, frame)
        return text + frame.block, spans

    def completion(self, prompt: str, turns: Sequence[Turn], answer: str) -> str:
        """Return what follows the prompt of ``turns`` in a sample: answer and end of turn.

        EOS at the end is left out, as the encoding adds it. An empty answer has no completion.

        Raises:
            InputError: The template fails, changes the answer, or the sample does not begin with
                the prompt.
        """
        if not answer.strip():
            return ""
        turns = self._with_system(turns)
        frame = self._frame(tuple(turn["role"] for turn in turns))
        whole = self._render([*turns, _turn("assistant", answer)], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise self._unusable(_disagreement(prompt, whole, "character"))
        completion = whole.removeprefix(prompt)
        # a template may trim an answer, but not rewrite it
        written = completion.removesuffix(frame.tail)
        if not completion.endswith(frame.tail) or written.strip() != answer.strip():
            raise self._unusable(f"changes the answer '{answer[:SHOWN]}' to '{written[:SHOWN]}'")
        # the encoding adds EOS, which some templates write too, perhaps with a line break
        end = self._tokenizer.eos_token
        if end and completion.rstrip().endswith(end):
            completion = completion.rstrip().removesuffix(end)
        return completion

    def end_of_turn(self) -> int | None:
        """Return the id of the token with which the template ends the model's turn.

        It is an added token, special or not. It is None if the turn ends with EOS or with ordinary
        text: then EOS alone ends an answer.
        """
        tail = self._frame(("user",)).tail
        ids: list[int] = self._tokenizer(tail, add_special_tokens=False)["input_ids"]
        # Gemma's tokenizer has line breaks and spaces among its added tokens
        added = {token for text, token in self._tokenizer.get_added_vocab().items() if text.strip()}
        first = next((token for token in ids if token in added), None)
        return None if first == self._tokenizer.eos_token_id else first

    def _with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns; a system turn that the template refuses goes before the first user's.

        Some templates raise an error for a system turn, others leave it out.
        """
        if turns[0]["role"] != "system" or self._has_system_turns:
            return list(turns)
        system, first, *others = turns
        return [{**first, "content": join_system(system["content"], first["content"])}, *others]

    @cached_property
    def _has_system_turns(self) -> bool:
        try:
            self._frame(("system", "user"))
        except InputError:
            return False
        return True

    def _compute_frame(self, roles: tuple[str, ...]) -> _Frame:
        """Return the frame of turns of these roles that an answer follows."""
        names = [f"\ufdd2{place}\ufdd3" for place in range(len(roles) + 1)]
        turns = [_turn(role, name) for role, name in zip(roles, names, strict=False)]
        prompt = self._render(turns, add_generation_prompt=True)
        answered = [*turns, _turn("assistant", names[-1])]
        whole = self._render(answered, add_generation_prompt=False)
        if not whole.startswith(prompt):
            prompt, whole = (_without_placeholders(text, names) for text in (prompt, whole))
            raise self._unusable(_disagreement(prompt, whole, "character"))
        around, at = [], 0
        for name in names:
            if whole.count(name) != 1 or whole.find(name) < at:
                raise self._unusable("leaves out, repeats or moves a turn")
            around.append(whole[at : whole.index(name)])
            at = whole.index(name) + len(name)
        before = whole.index(names[-1])
        if len(prompt) > before:
            raise self._unusable("ends the prompt after the answer")
        lead = whole[len(prompt) : before]
        around[-1] = around[-1].removesuffix(lead)
        block, blanks = (lead, "") if lead.strip() else ("", lead)
        return _Frame(around, block, blanks, whole[at:])

    def _check_ids(self) -> None:
        """Raise ``InputError`` unless the prompt's ids are the beginning of the sample's."""
        turns = [_turn("user", "質問")]
        prompt, _ = self.prompt(turns)
        for answer in PROBES:
            whole = prompt + self.completion(prompt, turns, answer)
            before, ids = (self._tokenizer(text)["input_ids"] for text in (prompt, whole))
            if ids[: len(before)] != before:
                pieces, others = map(self._tokenizer.convert_ids_to_tokens, (before, ids))
                raise self._unusable(_disagreement(pieces, others, "token"))

    def _answers(self, text: str, turns: Sequence[Turn], frame: _Frame) -> list[Span]:
        spans, at = [], 0
        for turn, before, after in zip(turns, frame.around, frame.around[1:], strict=False):
            start = at + len(before)
            core = turn["content"].strip()
            found = text.find(core, start)
            at = text.find(after, found + len(core))
            is_kept = text.startswith(before, start - len(before)) and min(found, at) >= 0
            if not is_kept or text[start:found].strip() or text[found + len(core) : at].strip():
                raise self._unusable(f"changes the text '{core[:SHOWN]}' of an earlier turn")
            if turn["role"] == "assistant" and core:
                # Blanks before an answer belong to it, as in the completion. Of what follows, what
                # ends the last answer too: gpt-oss ends earlier ones with another token.
                first = start - len(frame.blanks) if before.endswith(frame.blanks) else start
                spans.append((first, at + common_length(after, frame.tail)))
        return spans

    def _render(self, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise self._unusable("is missing")
        try:
            text = self._tokenizer.apply_chat_template(
                list(turns),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=DATE.strftime,
                # samples have no thoughts; templates with this switch then write no open block
                enable_thinking=False,
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise self._unusable(f"fails: {str(error).rstrip('.')}") from error
        return self._without_added_bos(str(text))

    def _without_added_bos(self, text: str) -> str:
        """Return ``text`` without the BOS that the tokenizer adds, and without blanks before it."""
        bos, from_bos = self._tokenizer.bos_token, text.lstrip()
        if not bos or not from_bos.startswith(bos):
            return text
        return from_bos.removeprefix(bos) if self._adds_bos else from_bos

    @cached_property
    def _adds_bos(self) -> bool:
        ids: list[int] = self._tokenizer("")["input_ids"]
        return ids[:1] == [self._tokenizer.bos_token_id]

    def _unusable(self, fault: str) -> InputError:
        return InputError(
            f"prompts.format is 'chat_template', but the chat template of the tokenizer at "
            f"'{self._tokenizer.name_or_path}' {fault}. Set prompts.format to 'training_prompt' or "
            f"'recipe', or give another model or, where it has no template of its own, another "
            f"quantization.chat_template and quantize again"
        )


def join_system(system: str, question: str) -> str:
    """Return a question after the text of a system turn, for formats without system turns."""
    return f"{system}\n\n{question}"


def _disagreement(prompt: Sequence[str], sample: Sequence[str], kind: str) -> str:
    """Return that a prompt is not the beginning of a sample, with both around the difference."""
    at = common_length(prompt, sample)
    near = slice(max(0, at - SHOWN), at + SHOWN)
    return (
        f"writes a prompt that is not the beginning of the sample with its answer, so training and "
        f"inference would differ from {kind} {at + 1} on: {prompt[near]!r} in the prompt, "
        f"{sample[near]!r} in the sample"
    )


def _without_placeholders(text: str, names: Sequence[str]) -> str:
    for name in names:
        text = text.replace(name, "…")
    return text


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}
