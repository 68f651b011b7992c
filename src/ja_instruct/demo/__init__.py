"""Code of the environment ``demo`` alone: models from Python packages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "e5_colbert_dataset": ["E5ColbertDataset"],
        "gguf_model_dataset": ["GGUFModelDataset"],
    },
)
