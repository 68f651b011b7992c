"""Text that spells a control token, such as ``<eos>`` in a question, stays text.

A tokenizer takes every ``<eos>`` for the token. So each text of a user is marked before it becomes
part of a prompt: ``MARK`` follows the first character of what only spells a control token. Texts
that spell none have no mark, and their encoding does not change.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Noncharacters, which Unicode reserves for a program's own use
MARK = "\ufdd0"
_RENAMED = "\ufdd1"
_MARKS = re.compile(f"{MARK}({MARK}?)")
# Pieces for characters without a piece of their own; they are special in some tokenizers
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_TURNS = ("user", "assistant", "user")


def unmark(text: str) -> str:
    """Return a prompt or a sample as it reads, without marks."""
    return _MARKS.sub(r"\1", text)


class ControlTokens:
    """The control tokens of a tokenizer, which texts of users cannot contain.

    They are its special tokens, and other added tokens that its chat template writes around turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the names from the tokenizer; it is not changed."""
        self.tokenizer = tokenizer
        around_turns, special = _render_turns(tokenizer), set(tokenizer.all_special_tokens)
        self._names = {
            name
            for token in tokenizer.added_tokens_decoder.values()
            # Gemma's tokenizer has line breaks and spaces among its added tokens
            if (name := str(token)).strip()
            and not _BYTE.fullmatch(name)
            and (token.special or name in special or name in around_turns)
        }
        longest_first = sorted(self._names, key=lambda name: (-len(name), name))
        # without names, a pattern that matches nothing
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def mark(self, text: str) -> str:
        """Return the text with a mark in everything that spells a control token."""
        escaped = text.replace(MARK, MARK + MARK)
        return self._pattern.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", escaped)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of prompts or samples; a marked spelling becomes ids of its text.

        Raises:
            InputError: A text is marked, and the tokenizer is not one of the library tokenizers.
        """
        plain = [text for text in texts if MARK not in text]
        # in one call, as a fast tokenizer splits a list among the processor's cores
        ids = iter(
            self.tokenizer(
                plain, add_special_tokens=add_special_tokens, return_attention_mask=False
            )["input_ids"]
            if plain
            else ()
        )
        return [
            self._encode_marked(text, add_special_tokens) if MARK in text else next(ids)
            for text in texts
        ]

    def count(self, text: str) -> int:
        """Return the number of tokens of a prompt."""
        return len(self.encode([text])[0])

    def _encode_marked(self, text: str, add_special_tokens: bool) -> list[int]:
        # no text may write a new name itself: the other noncharacter takes the place of its first
        safe = text.replace(_RENAMED, MARK + MARK)
        meant = self._pattern.sub(lambda found: _RENAMED + found[0], safe)
        encoding = self._renamed.encode(unmark(meant), add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    @cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer with other names of its control tokens, so that their names are text."""
        from tokenizers import Tokenizer

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"the tokenizer at '{self.tokenizer.name_or_path}' has no tokenizer.json, so a "
                f"text that spells a control token such as {sorted(self._names)[0]} cannot be "
                f"encoded as text; save it as a fast tokenizer, or remove such texts"
            )
        content: dict[str, Any] = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            token["content"] = self._rename(token["content"])
        model = content["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._rename(piece): place for piece, place in vocabulary.items()}
        else:  # pieces with their scores, in a Unigram model
            model["vocab"] = [[self._rename(piece), score] for piece, score in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._rename(model["unk_token"])
        if "merges" in model:
            # Llama 2's can make </s> of its characters
            model["merges"] = [pair for pair in model["merges"] if _merged(pair) not in self._names]
        renamed = Tokenizer.from_str(json.dumps(content))
        renamed.no_truncation()
        renamed.no_padding()
        return renamed

    def _rename(self, name: str) -> str:
        return _RENAMED + name if name in self._names else name


def _merged(pair: str | Sequence[str]) -> str:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left + right


def _render_turns(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a conversation in the chat template; empty without a usable one."""
    turns = [{"role": role, "content": "はい"} for role in _TURNS]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # refused where it is needed; a template is a program
        return ""
