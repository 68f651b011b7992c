"""``MergedModelDataset``: the 16-bit model with the adapter merged into it."""

from __future__ import annotations

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset


class MergedModelDataset(ModelArtifactDataset):
    """Saves a merged model shard by shard, with its tokenizer; loads a handle on the directory.

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

    STAGE = "export"
    SOURCE = "base"
