"""``JSONDataset``: a plotly figure, saved atomically as JSON."""

from __future__ import annotations

from kedro_datasets import plotly

from ja_instruct.datasets.whole_file import WholeFile


class JSONDataset(WholeFile, plotly.JSONDataset):  # type: ignore[misc]
    """Kedro's ``plotly.JSONDataset`` that saves atomically.

    Examples:
        YAML API:

        ```yaml
        loss_plot:
          type: ja_instruct.datasets.plotly.JSONDataset
          filepath: data/08_reporting/demo/loss_plot.json
        ```

        Python API:

        >>> from plotly.graph_objects import Figure
        >>> dataset = JSONDataset(filepath=tmp_path / "loss_plot.json")
        >>> dataset.save(Figure().add_scatter(y=[3, 2]))
        >>> dataset.load().data[0].y
        (3, 2)
    """
