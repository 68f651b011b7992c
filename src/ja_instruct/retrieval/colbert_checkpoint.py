"""Loading ColBERT checkpoints with colbert-ai and RAGatouille under transformers 5.

colbert-ai 0.2.22 was written for transformers 4, prints as it likes, compiles a C++ extension when
it loads, runs code that a checkpoint brings, and may ask the hub for the model that a checkpoint
was once trained from. All of that is put right here and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ragatouille import RAGPretrainedModel
    from torch import nn

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what RAGatouille and colbert-ai print and warn of to the debug log.

    The lines are logged when the block ends: a log handler may itself write to the standard output,
    which is caught here. The standard error stays as it is: progress bars are drawn there, and
    libraries that are imported meanwhile keep it for their log.
    """
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.callback(_log_lines, printed)
        stack.enter_context(contextlib.redirect_stdout(printed))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("default")
        stack.callback(_write_warnings, caught, printed)
        yield


def _write_warnings(caught: list[warnings.WarningMessage], printed: io.StringIO) -> None:
    for warning in caught:
        printed.write(f"\n{warning.category.__name__}: {warning.message}")


def _log_lines(printed: io.StringIO) -> None:
    for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
        logger.debug("colbert: %s", line)


def list_weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted by name."""
    return sorted(directory.glob("*.safetensors"))


def hash_weights(directory: Path) -> str:
    """Return the SHA-256, in hex, over the weight files in the order of their names."""
    digest = sha256()
    for path in list_weight_files(directory):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_checkpoint(directory: Path) -> None:
    """Refuse what colbert-ai would load wrongly, unsafely or from the network.

    Raises:
        InputError: ``directory`` lacks its configuration, ``artifact.metadata`` or safetensors
            weights, or brings Python code of its own (colbert-ai passes ``trust_remote_code``).
    """
    for name in ("config.json", "artifact.metadata"):
        if not (directory / name).is_file():
            raise InputError(
                f"{directory} is no ColBERT checkpoint: '{name}' is missing. Point "
                f"'retriever_checkpoint' at a directory saved by ColBERT or at its hub repository"
            )
    if not list_weight_files(directory):
        raise InputError(
            f"{directory} holds no .safetensors file; other formats can run code when they are "
            f"loaded. Convert it: load it and call save_pretrained, or choose another checkpoint"
        )
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config or any(directory.glob("*.py")):
        raise InputError(
            f"{directory} brings Python code of its own, which would run when it is loaded; "
            f"choose a ColBERT checkpoint of an architecture that transformers has"
        )


def prove_weights(model: nn.Module, directory: Path) -> None:
    """Compare every parameter of a loaded ColBERT model with the checkpoint's safetensors.

    The pooler is left out: ColBERT reads the token vectors only.

    Raises:
        InputError: A parameter is missing from the checkpoint, left over, or differs.
    """
    from safetensors import safe_open

    loaded = {key: value for key, value in model.state_dict().items() if ".pooler." not in key}
    missing, differing, left_over = set(loaded), [], []
    for path in list_weight_files(directory):
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - no dict
                if key in loaded:
                    missing.discard(key)
                    tensor = stored.get_tensor(key).to(loaded[key].device, loaded[key].dtype)
                    if tensor.shape != loaded[key].shape or not tensor.equal(loaded[key]):
                        differing.append(key)
                elif ".pooler." not in key and not key.startswith("cls."):
                    left_over.append(key)
    # Older checkpoints also store this constant, which is no weight.
    left_over = [key for key in left_over if not key.endswith(".position_ids")]
    for keys, what in (
        (sorted(missing), "lack(s)"),
        (differing, "differ(s) from the loaded model in"),
        (left_over, "hold(s), unused by the model,"),
    ):
        if keys:
            raise InputError(
                f"the weights in {directory} {what} {len(keys)} tensor(s) such as '{keys[0]}'; "
                f"the checkpoint is damaged or no ColBERT of this architecture: fetch it again or "
                f"choose another"
            )


@contextlib.contextmanager
def _class_for_transformers_5(directory: Path) -> Iterator[None]:
    """Make colbert-ai build a model class that transformers 5 can fill from ``directory``.

    Its ``HF_ColBERT`` never calls ``post_init``, which would set the two attributes; and it takes
    the architecture from the model that ``artifact.metadata`` names, on the hub if need be.
    """
    from colbert.modeling import base_colbert
    from colbert.modeling.colbert import ColBERT

    original: Callable[[str], Any] = base_colbert.class_factory

    def class_factory(_name_or_path: str) -> Any:
        model_class = original(str(directory))
        model_class.all_tied_weights_keys = {}
        model_class._keys_to_ignore_on_load_unexpected = {"cls"}
        return model_class

    base_colbert.class_factory = class_factory
    # Set, it stops the compilation of an extension that only on-disk indexes use.
    ColBERT.loaded_extensions = True
    try:
        yield
    finally:
        base_colbert.class_factory = original


def load_retriever(directory: Path) -> RAGPretrainedModel:
    """Load a checkpoint directory in float32 on the GPU, or on the CPU where there is none."""
    from safetensors import SafetensorError

    # A relative path of two parts would pass for a hub repository.
    directory = directory.resolve()
    check_checkpoint(directory)
    try:
        with quiet():
            from ragatouille import RAGPretrainedModel

            with _class_for_transformers_5(directory):
                retriever = RAGPretrainedModel.from_pretrained(str(directory), verbose=0)
        encoder = retriever.model.inference_ckpt.model
        prove_weights(encoder, directory)
    except SafetensorError as error:
        raise InputError(
            f"the weights in {directory} cannot be read ({error}); fetch the checkpoint again"
        ) from error
    encoder.float()
    return retriever
