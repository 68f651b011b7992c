"""Model directories, adapters and texts: random weights in a real model's shape.

Speed and memory do not depend on the weights' values, and the real weights cannot be downloaded
everywhere. The matrices are drawn one by one, N(0, 0.02) in bf16; norms are zero, to which Gemma's
RMSNorm adds one. The NF4 directory is what ``quantization`` writes of the 16-bit one (a test
compares them), made without the 16-bit weights ever being in a file. No factor of an adapter is
zero, so answers without the adapter would differ.

The tokenizer is Gemma's with a token for each of 1,000 Japanese characters, and no merges: a text
of n of these characters has exactly n tokens, and BOS before them.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.harness.recording import PROJECT
from ja_instruct.models.directory import write_provenance
from ja_instruct.models.json_files import read_provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch
    from transformers import (
        BitsAndBytesConfig,
        Gemma2Config,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

_GEMMA_2 = {
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-27b": {
        **_GEMMA_2,
        "vocab_size": 256_000,
        "hidden_size": 4608,
        "intermediate_size": 36_864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "tiny": {
        **_GEMMA_2,
        "vocab_size": 1280,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
    },
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
#: Rows of JIS X 0208: hiragana, katakana, and the first level of kanji.
JIS_ROWS = (4, 5, *range(16, 48))
DEVIATION = 0.02
SEED = 0


def japanese_characters() -> list[str]:
    """Return 1,000 Japanese characters: the kana, and kanji of JIS X 0208's first level."""
    codes = [bytes([0xA0 + row, 0xA0 + cell]) for row in JIS_ROWS for cell in range(1, 95)]
    return list("".join(code.decode("euc_jp", errors="ignore") for code in codes))[:1000]


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Return a Gemma tokenizer: BOS added, byte fallback, one token a character, no merges."""
    from transformers import GemmaTokenizer

    pieces = [*SPECIAL, *BYTES, *japanese_characters(), "▁", "\n"]
    tokenizer: PreTrainedTokenizerBase = GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], add_bos_token=True
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[5:])})
    return tokenizer


def random_samples(lengths: Iterable[tuple[int, int]], seed: int) -> list[tuple[str, str]]:
    """Return prompts and answers of given lengths in tokens, BOS and EOS included."""
    characters, generator = japanese_characters(), random.Random(seed)

    def text(length: int) -> str:
        return "".join(generator.choices(characters, k=length))

    return [(text(prompt - 1), text(answer - 1)) for prompt, answer in lengths]


def _read_parameters(stage: str) -> Any:
    """Return the recipe's parameters of a stage."""
    path = PROJECT / f"conf/base/parameters_{stage}.yml"
    return yaml.safe_load(path.read_text("utf-8"))[stage]


def make_config(shape: str) -> Gemma2Config:
    """Return the configuration of a key of ``SHAPES``, in bf16."""
    from transformers import Gemma2Config

    return Gemma2Config(**SHAPES[shape], dtype="bfloat16", architectures=["Gemma2ForCausalLM"])


def empty_model(config: Any) -> PreTrainedModel:
    """Return a model without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def make_model(
    directory: Path, kind: str, shape: str, *, device: str, shard_size: str = "4GB"
) -> None:
    """Write a model directory.

    Args:
        directory: Where to write; it is created.
        kind: ``bf16``, such as ``google/gemma-2-27b``, or ``nf4``: all linear layers but the head
            quantized by bitsandbytes as ``quantization`` does.
        shape: A key of ``SHAPES``.
        device: Where the weights are drawn. They are collected in host memory.
        shard_size: Maximum size of a safetensors file.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.quantizers import AutoHfQuantizer
    from transformers.quantizers.base import get_keys_to_not_convert

    model = empty_model(make_config(shape))
    kept = get_keys_to_not_convert(model)
    generator = torch.Generator(device).manual_seed(SEED)
    for name, module in list(model.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or name == "lm_head":  # tied
            continue
        drawn = torch.zeros(weight.shape, dtype=torch.bfloat16, device=device)
        if weight.dim() > 1:
            drawn.normal_(std=DEVIATION, generator=generator)
        if kind == "nf4" and isinstance(module, torch.nn.Linear) and name not in kept:
            model.set_submodule(name, _quantized(drawn))
        else:
            module.weight = torch.nn.Parameter(drawn.cpu(), requires_grad=False)
    model.tie_weights()
    tokenizer = make_tokenizer()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, key, getattr(tokenizer, key))
    model.generation_config = GenerationConfig.from_model_config(model.config)
    if kind == "nf4":
        # save_pretrained reads both of a model that transformers has quantized
        model.config.quantization_config = nf4_config()
        model.hf_quantizer = AutoHfQuantizer.from_config(nf4_config())
        # the base tokenizer has no template, so quantization adds the recipe's
        tokenizer.chat_template = _read_parameters("quantization")["chat_template"]
    model.save_pretrained(directory, max_shard_size=shard_size)
    tokenizer.save_pretrained(directory)
    if kind == "nf4":
        plain = empty_model(make_config(shape))
        # with the fields of the pipeline that the product reads
        provenance = {
            "stage": "quantization",
            "parameters": sum(weight.numel() for weight in plain.parameters()),
            "source": {"model_id": f"random-{shape}", "revision": None, "model_type": "gemma2"},
            "settings": {"quant_type": "nf4", "made_by": __name__, "seed": SEED},
        }
        write_provenance(directory, provenance)


def make_sparse_model(directory: Path, shape: str, dtype: str, layers: int) -> tuple[int, int]:
    """Write a model whose weights are zero, in files that take no space on the disk.

    Args:
        directory: Where to write; it is created.
        shape: A key of ``SHAPES``.
        dtype: The name in PyTorch of the type of the weights.
        layers: How many layers, each in a file of its own.

    Returns:
        The bytes of a layer, and those of the embedding and the last norm.
    """
    config = make_config(shape)
    config.num_hidden_layers, config.dtype = layers, dtype
    config.layer_types = config.layer_types[:layers]
    model = empty_model(config)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in model.named_parameters():
        _, _, layer = name.partition(".layers.")
        parts.setdefault(layer.partition(".")[0] or "other", {})[name] = weight
    directory.mkdir(parents=True)
    index, sizes = {}, {}
    for part, weights in parts.items():
        file = f"model-{part}.safetensors"
        sizes[part] = _write_holes(directory / file, weights, dtype)
        index |= dict.fromkeys(weights, file)
    content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content), "utf-8")
    config.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return sizes["0"], sizes["other"]


def _write_holes(path: Path, weights: Mapping[str, torch.Tensor], dtype: str) -> int:
    """Write a safetensors file's header and, as one hole, its weights; return their bytes."""
    kind, size = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}[dtype]
    header, end = {}, 0
    for name, weight in weights.items():
        start, end = end, end + size * weight.numel()
        header[name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return end


def _quantized(weight: torch.Tensor) -> torch.nn.Module:
    """Return a linear layer with a weight in NF4, on the CPU."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    outputs, inputs = weight.shape
    layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, device="meta")
    packed = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    layer.weight = packed.to(weight.device).to("cpu")
    return layer


def nf4_config() -> BitsAndBytesConfig:
    """Return the recipe's quantization: NF4 with double quantization, computed in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def make_adapter(directory: Path, model: Path) -> None:
    """Write a LoRA adapter for a model directory, as the recipe's training would save it.

    Of ``model``, a directory, only the configuration and ``ja_instruct.json`` are read.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    # the adapter has the shapes of the plain model, not those of packed bits
    config.__dict__.pop("quantization_config", None)
    settings = {**_read_parameters("sft")["lora"], "task_type": "CAUSAL_LM"}
    rank = settings.pop("lora_r")
    del settings["seed"]
    lora = LoraConfig(r=rank, **settings)
    adapted = get_peft_model(empty_model(config), lora)
    torch.manual_seed(SEED)
    for name, module in adapted.named_modules():
        if name.endswith((".lora_A.default", ".lora_B.default")):
            drawn = torch.empty(module.weight.shape).normal_(std=DEVIATION)
            module.weight = torch.nn.Parameter(drawn)
    adapted.peft_config["default"].base_model_name_or_path = str(model)
    adapted.save_pretrained(str(directory), save_embedding_layers=False)
    provenance = read_provenance(model)
    base = {
        "model_id": provenance.get("source", {}).get("model_id"),
        "weights_sha256": provenance.get("weights_sha256"),
    }
    settings = {"made_by": __name__, "seed": SEED, "lora_r": rank}
    write_provenance(directory, {"stage": "sft", "base": base, "settings": settings})


def find_or_make(directory: Path, kind: str, shape: str, device: str) -> None:
    """Make a model of ``kind`` in ``directory`` unless one is there; print which."""
    # the last file of either kind to be written: without it the directory is incomplete
    last = "ja_instruct.json" if kind == "nf4" else "tokenizer_config.json"
    if (directory / last).is_file():
        print(f"{directory}: exists", flush=True)
        return
    make_model(directory, kind, shape, device=device)
    print(f"{directory}: made", flush=True)


def find_or_make_adapter(directory: Path, model: Path) -> None:
    """Make an adapter in ``directory`` unless one for these weights is there; print which."""
    base = read_provenance(directory).get("base", {})
    if base and base["weights_sha256"] == read_provenance(model).get("weights_sha256"):
        print(f"{directory}: exists", flush=True)
        return
    make_adapter(directory, model)
    print(f"{directory}: made", flush=True)


def load_nf4(model: str) -> tuple[Any, Any]:
    """Return model and tokenizer of an NF4 directory as transformers loads them.

    On a CPU the weights are dequantized to float32: bitsandbytes' 4-bit kernels take many times as
    long there.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model,
        device_map={"": 0} if cuda else "cpu",
        dtype=torch.bfloat16 if cuda else torch.float32,
        local_files_only=True,
    )
    if not cuda:
        loaded = loaded.dequantize().float()
        loaded.is_loaded_in_4bit = False
    return loaded, AutoTokenizer.from_pretrained(model, local_files_only=True)
