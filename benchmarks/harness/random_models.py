"""Model directories with random weights in a real model's shape, 16-bit or NF4.

    python benchmarks/harness/random_models.py nf4 gemma-2-27b /dev/shm/nf4
    python benchmarks/harness/random_models.py bf16 gemma-2-27b /models/bf16

For speed and memory what the weights are does not matter, and at full size the real ones cannot be
had everywhere. They are drawn on the GPU where there is one, matrix by matrix, N(0, 0.02) in bf16;
norms are zero, which Gemma's RMSNorm adds to one. The NF4 directory is what ``quantization`` would
write of the 16-bit directory of the same seed and device (a test on the tiny shape holds them
equal), made without the 16-bit weights ever being in a file.

The tokenizer has a token a character (``character_tokenizer.py``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.character_tokenizer import make_tokenizer
from benchmarks.harness.recording import PROJECT
from ja_instruct import __version__
from ja_instruct.models.directory import write_provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from transformers import Gemma2Config, PreTrainedModel

_GEMMA_2 = {
    "head_dim": 256,
    "vocab_size": 256_000,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-27b": {
        **_GEMMA_2,
        "hidden_size": 4608,
        "intermediate_size": 36_864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "gemma-2-9b": {
        **_GEMMA_2,
        "hidden_size": 3584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "query_pre_attn_scalar": 256,
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
QUANTIZATION = PROJECT / "conf/base/parameters_quantization.yml"
WEIGHT_DEVIATION = 0.02
SHARD_BYTES = 4_000_000_000
#: Shards on their way to the disk; each waits in host memory.
SHARDS_IN_FLIGHT = 3
SEED = 0


def make_config(shape: str) -> Gemma2Config:
    """Return the configuration of a shape, in bf16; exits when there is no such shape."""
    from transformers import Gemma2Config

    if shape not in SHAPES:
        sys.exit(f"no shape '{shape}'; there are {', '.join(SHAPES)}")
    return Gemma2Config(**SHAPES[shape], dtype="bfloat16", architectures=["Gemma2ForCausalLM"])


def make_bf16_model(
    directory: Path, shape: str, *, device: str | None = None, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write a 16-bit model directory, as ``google/gemma-2-27b`` is one.

    Args:
        directory: Where to write; it is created.
        shape: A key of ``SHAPES``.
        device: Where the weights are drawn; the first GPU by default, the CPU without one.
        shard_bytes: The size of a safetensors file.

    Returns:
        Weights, bytes and seconds.
    """
    model = _empty_model(shape)
    return _write(directory, model, _draw_weights(model, _choose(device)), shard_bytes)


def make_nf4_model(
    directory: Path, shape: str, *, device: str | None = None, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write the NF4 directory that ``quantization`` makes of such a 16-bit directory.

    Quantized are all linear layers but the head, by bitsandbytes: NF4 in blocks of 64, constants
    quantized too, computing in bf16. Arguments and what is returned are ``make_bf16_model``'s.
    """
    import torch
    from transformers import BitsAndBytesConfig

    model = _empty_model(shape)
    tensors = _quantize(model, _draw_weights(model, _choose(device)))
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # the base tokenizer has none, so quantization adds the recipe's
    parameters = yaml.safe_load(QUANTIZATION.read_text("utf-8"))["quantization"]
    template = parameters["chat_template"]
    figures = _write(directory, model, tensors, shard_bytes, chat_template=template)
    started = time.perf_counter()
    write_provenance(directory, _describe(shape, figures["weights"]))
    figures["checksums_seconds"] = round(time.perf_counter() - started, 1)
    return figures


def _choose(device: str | None) -> str:
    import torch

    return device or ("cuda:0" if torch.cuda.is_available() else "cpu")


def _empty_model(shape: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(make_config(shape))
    return model


def _draw_weights(model: PreTrainedModel, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight of the model, drawn in the same order with the same seed."""
    import torch

    generator = torch.Generator(device).manual_seed(SEED)
    # tied weights come once
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            yield name, torch.zeros(weight.shape, dtype=torch.bfloat16, device=device)
        else:
            drawn = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
            yield name, drawn.normal_(std=WEIGHT_DEVIATION, generator=generator)


def _quantize(
    model: PreTrainedModel, weights: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a matrix as its 4 bits and their constants, under the names transformers gives them."""
    from bitsandbytes.nn import Params4bit
    from torch.nn import Linear
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(model))
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name not in kept
    }
    for name, weight in weights:
        if name not in linear:
            yield name, weight
            continue
        quantized = Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(weight.device)
        yield name, quantized.data
        for key, tensor in quantized.quant_state.as_dict(packed=True).items():
            yield f"{name}.{key}", tensor


def _write(
    directory: Path,
    model: PreTrainedModel,
    tensors: Iterator[tuple[str, torch.Tensor]],
    shard_bytes: int,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """Write shards, index, configurations and tokenizer; return weights, bytes and seconds."""
    from transformers import GenerationConfig

    started = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    files = _write_shards(directory, tensors, shard_bytes)
    index: dict[str, str] = {}
    for number, (part, names) in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        part.rename(directory / name)
        index |= dict.fromkeys(names, name)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    weights = sum(weight.numel() for weight in model.parameters())
    content = {
        "metadata": {"total_parameters": weights, "total_size": size},
        "weight_map": dict(sorted(index.items())),
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, key, getattr(tokenizer, key))
    model.config.save_pretrained(directory)
    GenerationConfig.from_model_config(model.config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    seconds = time.perf_counter() - started
    return {"weights": weights, "bytes": size, "seconds": round(seconds, 1)}


def _write_shards(
    directory: Path, tensors: Iterator[tuple[str, torch.Tensor]], shard_bytes: int
) -> list[tuple[Path, Sequence[str]]]:
    """Write the tensors while further ones are made; return files and what they hold."""
    from safetensors.torch import save_file

    files: list[tuple[Path, Sequence[str]]] = []
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT) as pool:

        def hand_over(shard: dict[str, torch.Tensor]) -> None:
            path = directory / f"part-{len(files)}.unfinished"
            files.append((path, tuple(shard)))
            waiting.append(pool.submit(save_file, shard, path, {"format": "pt"}))
            while len(waiting) >= SHARDS_IN_FLIGHT:
                waiting.popleft().result()

        shard: dict[str, torch.Tensor] = {}
        size = 0
        for name, tensor in tensors:
            if shard and size + tensor.nbytes > shard_bytes:
                hand_over(shard)
                shard, size = {}, 0
            shard[name] = tensor.cpu().contiguous()
            size += tensor.nbytes
        hand_over(shard)
        while waiting:
            waiting.popleft().result()
    return files


def _describe(shape: str, weights: int) -> dict[str, Any]:
    """Return the provenance of an NF4 directory, with the fields that ``quantization`` writes."""
    return {
        "stage": "quantization",
        "parameters": weights,
        "source": {
            "model_id": f"random-{shape}",
            "revision": None,
            "model_type": "gemma2",
            "provenance": {"made_by": "benchmarks/harness/random_models.py", "seed": SEED},
        },
        "settings": {
            "quant_type": "nf4",
            "double_quantization": True,
            "compute_dtype": "bfloat16",
        },
        "versions": {
            "ja-instruct": __version__,
            **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        },
    }


MAKERS = {"bf16": make_bf16_model, "nf4": make_nf4_model}


def find_or_make(directory: Path, kind: str, shape: str, device: str | None = None) -> None:
    """Make a model of ``kind`` in ``directory`` unless one is there; say so, and what is free."""
    # the last file of either kind to be written, or there is no model yet
    last = "ja_instruct.json" if kind == "nf4" else "tokenizer_config.json"
    if (directory / last).is_file():
        print(f"{directory}: there already", flush=True)
        return
    figures = MAKERS[kind](directory, shape, device=device)
    free = shutil.disk_usage(directory).free
    print(f"{directory}: {kind}, {figures}, free {free / 1e9:.1f} GB", flush=True)


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=list(MAKERS))
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", help="default: the GPU where there is one")
    options = parser.parse_args()
    find_or_make(options.directory, options.kind, options.shape, options.device)


if __name__ == "__main__":
    main()
