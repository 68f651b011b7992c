"""Configurations of real models, as far as memory follows from them."""

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
