"""Compute the norms, rotary embeddings and gates of a transformers model with one kernel each.

They process few numbers per token, so in a decoding step launching kernels takes longer than
computing: about fifty launches per layer of Gemma 2 with PyTorch's operations, and six here.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, get_args

import torch

from ja_instruct.engine.kernels.norm_rope_gate import (
    WIDEST,
    Activation,
    Form,
    gated,
    rms_norm,
    rotate,
)
from ja_instruct.engine.kernels.triton import is_available

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]

KINDS = (torch.bfloat16, torch.float16)
ROTATION = "apply_rotary_pos_emb"


@torch.inference_mode()
def use_fused_layers(model: torch.nn.Module) -> int:
    """Make a model compute its norms, gates and rotary embeddings with one kernel each.

    The result is the number of changed modules, 0 unless the model is on a supported GPU.

    Modules are recognized by their parts, and each kernel is first tried on random numbers. A
    module with another result, beyond 16-bit rounding, keeps its computation, with a warning. So
    does one whose ``forward`` was replaced before. Inputs of other dtypes or devices use the
    original computation. For inference only: the kernels have no gradients. A later copy of the
    model would use the weights of this one.
    """
    changed = 0
    reasons: dict[str, str] = {}
    for module in model.modules():
        weight = next(module.parameters(), None)
        if weight is None or not is_available(weight.device):
            continue
        for make in (_norm_forward, _mlp_forward, _attention_forward):
            try:
                forward = make(module, weight.device)
            except ValueError as error:
                reasons[type(module).__name__] = str(error)
                continue
            if forward is not None:
                module.forward = forward
                changed += 1
    for name, reason in sorted(reasons.items()):
        logger.warning("%s keeps its own computation of many kernels: %s", name, reason)
    if changed:
        logger.info("%d norms, gates and rotary embeddings use one kernel each", changed)
    return changed


def _norm_forward(norm: Any, device: torch.device) -> Forward | None:
    """Return the ``forward`` of an RMSNorm; None for other modules."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    named = type(norm).__name__.endswith("RMSNorm")
    if not named or weight is None or weight.dim() != 1 or not isinstance(eps, float):
        return None
    original = _class_forward(norm)
    kind = weight.dtype if weight.dtype in KINDS else torch.bfloat16
    form = _form_of(norm, eps, kind)
    width = len(weight)

    def forward(*args: Any, **kwargs: Any) -> Any:
        usual = len(args) == 1 and not kwargs
        if not usual or not _fits(args[0], (kind,), device) or args[0].shape[-1] != width:
            return original(norm, *args, **kwargs)
        return rms_norm(args[0], norm.weight, eps, form)

    return forward


def _form_of(norm: Any, eps: float, kind: torch.dtype) -> Form:
    width = len(norm.weight)
    if width > WIDEST:
        raise ValueError(f"a row of {width} numbers is too long for a program")
    # the squares of the last, small row are as small as eps
    scales = torch.tensor([1.0, 30.0, 1e-3])[:, None]
    x = (_random(3, width) * scales).to(norm.weight.device, kind)
    expected = _tried(type(norm).forward, norm, x)
    outputs: dict[Form, torch.Tensor] = {
        form: rms_norm(x, norm.weight, eps, form) for form in get_args(Form)
    }
    # the form that rounds like the norm
    form = min(outputs, key=lambda form: int((outputs[form] != expected).sum()))
    # two roundings, because the weight can magnify the one of the normalized number
    if expected.dtype != kind or not _is_close(outputs[form], expected, roundings=2):
        raise ValueError(f"it is not one of the known norms with numbers in {kind}")
    return form


def _mlp_forward(mlp: Any, device: torch.device) -> Forward | None:
    """Return the ``forward`` of a gated MLP; None for other modules."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(callable(getattr(mlp, part, None)) for part in parts):
        return None
    original = _class_forward(mlp)
    activation = _activation_of(mlp, device)

    def forward(*args: Any, **kwargs: Any) -> Any:
        usual = len(args) == 1 and not kwargs
        if not usual or not _fits(args[0], KINDS, device):
            return original(mlp, *args, **kwargs)
        gate, up = mlp.gate_proj(args[0]), mlp.up_proj(args[0])
        if gate.dtype != args[0].dtype or up.dtype != gate.dtype:
            return mlp.down_proj(mlp.act_fn(gate) * up)
        return mlp.down_proj(gated(gate, up, activation))

    return forward


def _activation_of(mlp: Any, device: torch.device) -> Activation:
    # the module without its matrices: its input is gate and up, its output their product
    bare = copy.copy(mlp)
    ends = {"gate_proj": lambda x: x[0], "up_proj": lambda x: x[1], "down_proj": lambda x: x}
    vars(bare)["_modules"] = {**mlp._modules, **ends}
    pair = (_random(2, 4, 512) * torch.tensor([3.0, 1.0])[:, None, None]).to(device, KINDS[0])
    # in float32, so that only the kernel's result is rounded
    expected = _tried(type(mlp).forward, bare, pair.float())
    for activation in get_args(Activation):
        if _is_close(gated(pair[0], pair[1], activation), expected, roundings=1):
            return activation  # type: ignore[no-any-return]
    raise ValueError(f"its activation is none of {', '.join(get_args(Activation))}")


def _attention_forward(attention: Any, device: torch.device) -> Forward | None:
    """Return the ``forward`` of an attention layer; None for modules without rotary embedding.

    transformers' attention calls ``apply_rotary_pos_emb`` as a global name of its module. The copy
    returned here has the same code with another function under that name, so that other models
    keep theirs.
    """
    original: Any = type(attention).forward
    names = getattr(getattr(original, "__code__", None), "co_names", ())
    if ROTATION not in names or ROTATION not in original.__globals__:
        return None
    _class_forward(attention)
    rotation = original.__globals__[ROTATION]
    _try_rotation(rotation, device)

    def rotate_or_call(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 4 or kwargs or not _can_rotate(device, *args):
            return rotation(*args, **kwargs)
        return rotate(*args)

    namespace = {**original.__globals__, ROTATION: rotate_or_call}
    copied = FunctionType(
        original.__code__, namespace, original.__name__, original.__defaults__, original.__closure__
    )
    copied.__kwdefaults__ = original.__kwdefaults__
    return MethodType(functools.update_wrapper(copied, original), attention)


def _try_rotation(rotation: Forward, device: torch.device) -> None:
    # unlike real angles', both halves of cos and sin differ, so that mixing them up is noticed
    query, key, angles = _random(2, 3, 4, 64), _random(2, 3, 2, 64), _random(2, 2, 3, 64)
    given = [query.transpose(1, 2), key.transpose(1, 2), angles[0], angles[1]]
    given = [numbers.to(device, KINDS[0]) for numbers in given]
    expected = _tried(rotation, *(numbers.float() for numbers in given))
    outputs = rotate(*given)
    if not all(_is_close(outputs[place], expected[place], roundings=1) for place in range(2)):
        raise ValueError("its rotary embedding does not rotate halves")


def _can_rotate(device: torch.device, *inputs: torch.Tensor) -> bool:
    query, key, cos, sin = inputs
    if query.dim() != 4 or key.dim() != 4 or cos.dim() != 3 or cos.shape != sin.shape:
        return False
    sequences, _, tokens, width = query.shape
    return (
        _fits(query, KINDS, device)
        and all(_fits(other, (query.dtype,), device) for other in (key, cos, sin))
        and all(numbers.stride(-1) == 1 for numbers in inputs)
        and (key.shape[0], *key.shape[2:]) == (sequences, tokens, width)
        and cos.shape[0] in (1, sequences)
        and tuple(cos.shape[1:]) == (tokens, width)
        and width % 2 == 0
    )


def _class_forward(module: Any) -> Any:
    if "forward" in vars(module):
        raise ValueError("its forward was replaced before")
    return type(module).forward


def _fits(x: Any, kinds: tuple[torch.dtype, ...], device: torch.device) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in kinds and x.device == device


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _tried(original: Forward, *given: Any) -> Any:
    try:
        return original(*given)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"it cannot be tried on random numbers: {error}") from error


def _is_close(output: torch.Tensor, expected: torch.Tensor, roundings: int) -> bool:
    if output.shape != expected.shape:
        return False
    exact = expected.float()
    allowed = roundings * torch.finfo(output.dtype).eps * exact.abs() + 1e-5
    return bool(((output.float() - exact).abs() <= allowed).all())
