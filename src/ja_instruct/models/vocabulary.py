"""Compare the token ids of a model directory's tokenizer with the rows of the model's embedding."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from ja_instruct.errors import InputError
from ja_instruct.models.text_model import text_settings
from ja_instruct.tables.json_objects import JSONObject, read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


class _AddedToken(JSONObject):
    id: int
    content: str
    special: bool = False


class _TokenizerFields(JSONObject):
    model: dict[str, Any] = Field(default_factory=dict)
    added_tokens: list[_AddedToken] = Field(default_factory=list)


class _DecodedToken(JSONObject):
    content: str
    special: bool = False


class TokenizerConfigFields(JSONObject):
    """The fields of ``tokenizer_config.json`` that are read."""

    tokenizer_class: str | None = None
    model_max_length: float | None = None
    added_tokens_decoder: dict[str, _DecodedToken] = Field({})
    chat_template: str | list[Any] | None = None


class _Token(NamedTuple):
    id: int
    content: str
    special: bool


def check_tokenizer(directory: Path, config: Mapping[str, Any], remedy: str) -> None:
    """Raise ``InputError`` if tokens have no row in the embedding, or a file cannot be read.

    A model with more rows than tokens is padded, which is fine. So is an added special token
    without a row that neither a text nor the tokenizer uses: Gemma 3's text models have one,
    ``<image_soft_token>``.

    Args:
        directory: The model's; nothing is checked without ``tokenizer.json``.
        config: The model's ``config.json``.
        remedy: The end of a message about a file that cannot be read.
    """
    settings_path, path = directory / TOKENIZER_CONFIG_FILE, directory / TOKENIZER_FILE
    settings: dict[str, Any] = {}
    if settings_path.exists():
        settings = read_json_object(settings_path, remedy, TokenizerConfigFields)
    rows = text_settings(config).get("vocab_size")
    if rows is None or not path.exists():  # the family's default
        return
    stat = path.stat()
    above = set(_tokens_above(rows, path, stat.st_mtime_ns, stat.st_size, remedy))
    above |= {
        _Token(int(position), token["content"], token.get("special", False))
        for position, token in settings.get("added_tokens_decoder", {}).items()
        if position.isdecimal() and int(position) >= rows
    }
    used = [token for token in above if not token.special or _uses(directory, settings, token)]
    if not used:
        for token in sorted(above):
            logger.info("%s: the model has no embedding for %s", path, token.content)
        return
    largest = max(used)
    raise InputError(
        f"{path}: token '{largest.content}' has the id {largest.id}, but the model has {rows} "
        f"embedding rows (vocab_size in config.json), for the ids 0 to {rows - 1}; use the "
        f"tokenizer that was published with the weights, or resize the embedding for added tokens "
        f"(resize_token_embeddings of transformers) and save the model again"
    )


# parsing takes 1 s for Gemma, and a model directory is checked several times in a run
@lru_cache(maxsize=8)
def _tokens_above(
    rows: int, path: Path, _mtime_ns: int, _size: int, remedy: str
) -> tuple[_Token, ...]:
    """Return the tokens of ``tokenizer.json`` that have no row."""
    content = read_json_object(path, remedy, _TokenizerFields)
    added = {
        token["content"]: _Token(token["id"], token["content"], token.get("special", False))
        for token in content.get("added_tokens", [])
    }
    vocabulary = content.get("model", {}).get("vocab", {})
    try:
        if isinstance(vocabulary, list):  # of pieces with their scores, in a Unigram model
            vocabulary = {piece: position for position, (piece, _) in enumerate(vocabulary)}
        above = [piece for piece, position in vocabulary.items() if position >= rows]
    except (AttributeError, TypeError, ValueError) as error:
        fault = f"'model.vocab' does not give each piece its id ({error})"
        raise InputError(f"{path}: {fault}; {remedy}") from error
    listed = {piece: _Token(vocabulary[piece], piece, special=False) for piece in above}
    return tuple(token for token in {**listed, **added}.values() if token.id >= rows)


def _uses(directory: Path, settings: Mapping[str, Any], token: _Token) -> bool:
    """Return whether a tokenizer adds a special token to texts, itself or by its chat template."""
    named = [value for key, value in settings.items() if key.endswith("_token")]
    names = [value.get("content") if isinstance(value, dict) else value for value in named]
    template = directory / TEMPLATE_FILE
    templates = str(settings.get("chat_template"))
    if template.is_file():
        templates += template.read_text("utf-8", errors="replace")
    return token.content in names or token.content in templates
