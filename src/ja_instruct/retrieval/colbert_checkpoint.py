"""Loading ColBERT checkpoints with colbert-ai and RAGatouille under transformers 5.

colbert-ai 0.2.22 was written for transformers 4. It prints, compiles a C++ extension on loading,
runs Python code that a checkpoint brings, sets environment variables, and may ask the hub for the
model that a checkpoint was trained from. This module prevents all of that, and keeps it on the CPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.vocabulary import check_tokenizer
from ja_instruct.tables.json_objects import JSONObject, read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ragatouille import RAGPretrainedModel
    from torch import nn

logger = logging.getLogger(__name__)

_REMEDY = "fetch the checkpoint again, or choose another"


class _Config(JSONObject):
    model_type: str
    vocab_size: int


class _Metadata(JSONObject):
    """ColBERT's own settings, of which these are read for the sizes of tensors."""

    dim: int
    query_maxlen: int
    doc_maxlen: int


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send the output and the warnings of RAGatouille and colbert-ai to the debug log.

    The lines are logged after the block, as a log handler may write to the standard output. The
    standard error is left alone: progress bars and other libraries' logs use it.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
    finally:
        for warning in caught:
            printed.write(f"\n{warning.category.__name__}: {warning.message}")
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            logger.debug("colbert: %s", line)


def list_weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted by name."""
    return sorted(directory.glob("*.safetensors"))


def hash_weights(directory: Path) -> str:
    """Return the SHA-256, in hex, over the weight files in the order of their names."""
    digest = hashlib.sha256()
    for path in list_weight_files(directory):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def check_checkpoint(directory: Path) -> None:
    """Raise ``InputError`` when colbert-ai would load wrongly, unsafely or from the network.

    That is so without configuration, ``artifact.metadata`` or safetensors weights, when one of its
    JSON files is damaged, and when the checkpoint contains Python code, as colbert-ai passes
    ``trust_remote_code``.
    """
    for name in ("config.json", "artifact.metadata"):
        if not (directory / name).exists():
            raise InputError(
                f"{directory} is not a ColBERT checkpoint: '{name}' is missing. Point "
                f"'retriever_checkpoint' at a directory saved by ColBERT or at its hub repository"
            )
    if not list_weight_files(directory):
        raise InputError(
            f"{directory} has no .safetensors file; other formats can run code when they are "
            f"loaded. Convert it: load it and call save_pretrained, or choose another checkpoint"
        )
    config = read_json_object(directory / "config.json", _REMEDY, _Config)
    read_json_object(directory / "artifact.metadata", _REMEDY, _Metadata)
    if "auto_map" in config or any(directory.glob("*.py")):
        raise InputError(
            f"{directory} contains Python code, which would run when it is loaded; "
            f"choose a ColBERT checkpoint of an architecture that transformers has"
        )
    check_tokenizer(directory, config, _REMEDY)


def prove_weights(model: nn.Module, directory: Path) -> None:
    """Raise ``InputError`` unless a loaded model has all weights of the checkpoint and no others.

    The pooler, which ColBERT does not use, may differ.
    """
    from safetensors import safe_open

    loaded = {key: value for key, value in model.state_dict().items() if ".pooler." not in key}
    missing, differing, left_over = set(loaded), [], []
    for path in list_weight_files(directory):
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - not a dict
                if key in loaded:
                    missing.discard(key)
                    tensor = stored.get_tensor(key).to(loaded[key].device, loaded[key].dtype)
                    if tensor.shape != loaded[key].shape or not tensor.equal(loaded[key]):
                        differing.append(key)
                elif ".pooler." not in key and not key.startswith("cls."):
                    left_over.append(key)
    # a constant that older checkpoints store
    left_over = [key for key in left_over if not key.endswith(".position_ids")]
    for keys, what in (
        (sorted(missing), "lack(s)"),
        (differing, "differ(s) from the loaded model in"),
        (left_over, "hold(s), unused by the model,"),
    ):
        if keys:
            raise InputError(
                f"the weights in {directory} {what} {len(keys)} tensor(s) such as '{keys[0]}'; "
                f"the checkpoint is damaged or of another architecture: fetch it again or choose "
                f"another"
            )


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module or class, or add one, until the block ends."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Keep colbert-ai quiet and on the CPU, and leave its modules and the environment as they were.

    With a GPU, colbert-ai would encode in float16 there, and a process without one, as a runner may
    start it for the next node, in float32. The CPU gives the same embeddings in every process.
    """
    environment = dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.callback(_restore, environment)
        import torch
        from colbert.infra.config.settings import RunSettings
        from colbert.modeling import base_colbert
        from colbert.modeling.tokenization import doc_tokenization, query_tokenization

        for module in (base_colbert, doc_tokenization, query_tokenization):
            stack.enter_context(_replaced(module, "DEVICE", torch.device("cpu")))
        stack.enter_context(_replaced(RunSettings, "total_visible_gpus", 0))
        yield


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@contextlib.contextmanager
def _class_for_transformers_5(directory: Path) -> Iterator[None]:
    """Make colbert-ai build a model class that transformers 5 can load from ``directory``.

    Its ``HF_ColBERT`` does not call ``post_init``, which sets the two attributes, and it takes the
    architecture from the model that ``artifact.metadata`` names, possibly from the hub.
    """
    from colbert.modeling import base_colbert
    from colbert.modeling.colbert import ColBERT

    original: Callable[[str], Any] = base_colbert.class_factory

    def class_factory(_name_or_path: str) -> Any:
        model_class = original(str(directory))
        model_class.all_tied_weights_keys = {}
        model_class._keys_to_ignore_on_load_unexpected = {"cls"}
        return model_class

    with (
        _replaced(base_colbert, "class_factory", class_factory),
        # prevents the compilation of an extension for on-disk indexes
        _replaced(ColBERT, "loaded_extensions", True),
    ):
        yield


def load_retriever(directory: Path) -> RAGPretrainedModel:
    """Load a checkpoint in float32 on the CPU; what it encodes is encoded inside ``on_cpu``.

    Raises:
        InputError: The checkpoint cannot be used.
    """
    from safetensors import SafetensorError

    # a relative path of two parts would be read as a hub repository
    directory = directory.resolve()
    check_checkpoint(directory)
    try:
        with on_cpu():
            from ragatouille import RAGPretrainedModel

            with _class_for_transformers_5(directory):
                retriever = RAGPretrainedModel.from_pretrained(str(directory), verbose=0)
        encoder = retriever.model.inference_ckpt.model
        prove_weights(encoder, directory)
    except SafetensorError as error:
        raise InputError(
            f"the weights in {directory} cannot be read ({error}); fetch the checkpoint again"
        ) from error
    except InputError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(
            f"{directory}: the checkpoint cannot be loaded ({type(error).__name__}: {error}); its "
            f"config.json, artifact.metadata or tokenizer may be damaged: {_REMEDY}"
        ) from error
    encoder.float()
    return retriever
