"""Nodes of ``reporting``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.tables.columns import as_dataset

if TYPE_CHECKING:
    from datasets import Dataset
    from plotly.graph_objects import Figure
else:  # Kedro resolves the hints of a node at run time; these libraries take seconds to import
    Dataset = Figure = Any

STAGES = ("data_filtering", "quantization", "sft", "rag_index", "inference")


def build_run_report(
    filter_report: dict[str, Any],
    quantization_report: dict[str, Any],
    train_metrics: dict[str, Any],
    loss_plot: Figure,
    rag_index_report: dict[str, Any],
    inference_report: dict[str, Any],
    tasks: Dataset,
    base_answers: Dataset,
    answers: Dataset,
) -> str:
    """Return one self-contained HTML page: figures, loss plot, answers before and after."""
    from jinja2 import Environment, PackageLoader

    reports = (
        filter_report,
        quantization_report,
        train_metrics,
        rag_index_report,
        inference_report,
    )
    summaries = {
        stage: {key.replace("_", " "): value for key, value in report["summary"].items()}
        for stage, report in zip(STAGES, reports, strict=True)
    }
    rejected = [item for item in filter_report["rejected_by_first_rule"].items() if item[1]]
    environment = Environment(loader=PackageLoader("ja_instruct"), autoescape=True)
    return environment.get_template("run_report.html.jinja").render(
        summaries=summaries,
        model=quantization_report["source"],
        loss=train_metrics["summary"],
        rejected_by_rule=sorted(rejected, key=lambda item: -item[1]),
        loss_plot=loss_plot.to_html(
            full_html=False,
            include_plotlyjs=True,
            # plotly's own id is random, and two runs would write different pages
            div_id="loss-plot",
            default_height=380,
            config={"responsive": True, "displayModeBar": False},
        ),
        comparisons=_compare(
            as_dataset(tasks, "tasks"),
            as_dataset(base_answers, "base_answers"),
            as_dataset(answers, "answers"),
        ),
    )


def _compare(tasks: Dataset, base_answers: Dataset, answers: Dataset) -> list[dict[str, Any]]:
    tuned = {answer["task_id"]: answer["output"] for answer in answers}
    references = {task["task_id"]: task.get("output") for task in tasks}
    return [
        {
            "task_id": answer["task_id"],
            "input": answer["input"],
            "base": answer["output"],
            "tuned": tuned.get(answer["task_id"], ""),
            "reference": references.get(answer["task_id"]),
        }
        for answer in base_answers
    ]
