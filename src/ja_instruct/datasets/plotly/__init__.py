"""Plots. kedro-viz recognizes them by the names of package, module and class."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"json_dataset": ["JSONDataset"]}
)
