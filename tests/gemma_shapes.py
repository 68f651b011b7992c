"""Configurations of real models, as far as memory follows from them."""

import json

from ja_instruct.datasets import ModelDirectoryDataset

GEMMA_2_27B = {
    "model_type": "gemma2",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_hidden_layers": 46,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 256000,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
}


def write_config(directory, **changes):
    """Write a directory with nothing but the configuration of Gemma 2 27B, and return it."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(GEMMA_2_27B | changes), "utf-8")
    return directory


def base_model_in(folder):
    """Return a catalog entry for such a directory, made below ``folder``."""
    return ModelDirectoryDataset(filepath=write_config(folder / "base_model"))
