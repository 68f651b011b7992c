"""``MergedModelDataset``: the 16-bit model with the adapter merged into it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

from ja_instruct.errors import InputError
from ja_instruct.models.checksums import require_files
from ja_instruct.models.directory import (
    CARD_FILE,
    PROVENANCE_FILE,
    ModelDirectory,
    read_provenance,
    require_model_files,
    write_provenance,
)
from ja_instruct.models.lora_merging import checkpoint_shards, tensor_offsets
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from ja_instruct.models.lora_merging import LoraMerge

logger = logging.getLogger(__name__)

_REMEDY = "make it with 'kedro run --pipeline=export' (and the same --env)"

# Of the base; the tokenizer is the adapter's, but for the SentencePiece model, which transformers
# no longer writes and llama.cpp's converter reads.
_COPIED = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.model",
)


class MergedModelDataset(AbstractDataset["LoraMerge", ModelDirectory]):
    """Merges while it saves, one matrix in memory at a time; loads a handle on the directory.

    The shards have the base's names and layout: each is copied, then the adapted matrices are
    written over the base's. So whatever the adapter leaves alone stays equal to the byte.

    Examples:
        YAML API:

        ```yaml
        merged_model:
          type: ja_instruct.datasets.MergedModelDataset
          filepath: data/06_models/base/merged_model
        ```

        Python API:

        >>> dataset = MergedModelDataset(filepath=tmp_path / "merged_model")
        >>> dataset.exists()
        False
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The directory.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless the directory is an unchanged product of ``export``."""
        require_model_files(self._filepath, _REMEDY)
        provenance = read_provenance(self._filepath)
        if provenance.get("stage") != "export":
            raise InputError(
                f"{self._filepath}: {PROVENANCE_FILE} does not say that 'export' wrote this "
                f"directory; {_REMEDY}"
            )
        description = f"export: checking {self._filepath.name}"
        require_files(self._filepath, provenance.get("files", {}), description, _REMEDY)

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; weights are read when a node asks for them."""
        self.check()
        provenance = read_provenance(self._filepath)
        base = provenance.get("base", {})
        return ModelDirectory(
            self._filepath.resolve(),
            base.get("model_id", self._filepath.name),
            base.get("revision"),
            provenance,
        )

    def save(self, data: LoraMerge) -> None:
        """Write shards, configuration, the adapter's tokenizer, provenance and card.

        Raises:
            InputError: There is not enough room on the disk.
        """
        from tqdm import tqdm

        shards = checkpoint_shards(data.base)
        self._require_room(sum((data.base.path / name).stat().st_size for name in shards))
        with replacing(self._filepath) as new:
            new.mkdir()
            for name in tqdm(shards, desc="export: merging", unit="shard", disable=None):
                _write_shard(data, name, new)
            for name in _COPIED:
                if (data.base.path / name).is_file():
                    shutil.copyfile(data.base.path / name, new / name)
            data.adapter.load_tokenizer().save_pretrained(new)
            (new / CARD_FILE).write_text(data.card, encoding="utf-8")
            write_provenance(new, data.provenance)

    def discard_unfinished(self) -> None:
        """Tidy up after a process that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _require_room(self, need: int) -> None:
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._filepath.parent).free
        if free < need:
            raise InputError(
                f"about {need / 1e9:.1f} GB of disk are needed for the merged model at "
                f"{self._filepath}, {free / 1e9:.1f} GB are free; make room, or point its "
                f"catalog entry elsewhere"
            )

    def _exists(self) -> bool:
        return (self._filepath / PROVENANCE_FILE).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def _write_shard(merge: LoraMerge, name: str, directory: Path) -> None:
    import torch

    target = directory / name
    shutil.copyfile(merge.base.path / name, target)
    offsets = tensor_offsets(target)
    with target.open("r+b") as file:
        for key, matrix in merge.merged_matrices(name):
            file.seek(offsets[key][0])
            # NumPy has no bfloat16, so the bytes are written as such
            file.write(matrix.contiguous().view(torch.uint8).numpy().data)
