"""Tiny tokenizers of the kinds that models have, learned from a few Japanese texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = [
    "終わりの印とは何ですか。",
    "文の終わりに置き、始め、発話を閉じます。",
    "A <b>bold</b> word, s> and </s in a line.",
] * 3
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
KINDS = ("llama", "llama_legacy", "byte_level", "unigram")


def make_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """Return a fast tokenizer that adds ``<s>``, with ``</s>`` as EOS.

    ``llama``: BPE with byte fallback and a space before the first word. ``llama_legacy``: with a
    space after each special token, and with merges that spell ``</s>``. ``byte_level``: as of
    Llama 3 and Qwen, with the special tokens outside of the vocabulary. ``unigram``: as of
    SentencePiece, where ``</s>`` is the likeliest piece for its text. All have ``[TURN]``, which is
    not special.
    """
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer: Tokenizer = {
        "llama": _llama,
        "llama_legacy": _llama,
        "byte_level": _byte_level,
        "unigram": _unigram,
    }[kind]()
    if kind == "llama_legacy":
        tokenizer = _with_legacy_parts(tokenizer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("[TURN]", normalized=False)])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _llama():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *BYTES], show_progress=False
    )
    learner.train_from_iterator(TEXTS, trainer)
    return learner


def _with_legacy_parts(learned):
    import json

    from tokenizers import Tokenizer, models, normalizers

    model = json.loads(learned.to_str())["model"]
    vocabulary, merges = dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.insert(0, (left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def _byte_level():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(TEXTS, trainer)
    return learner


def _unigram():
    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = sorted(set("".join(TEXTS)) | set("▁[TURN]"))
    pieces = [(name, 0.0) for name in SPECIAL]
    pieces += [(character, -5.0) for character in characters]
    pieces += [("終わり", -3.0), ("▁</", -4.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer
