"""``raw_conversations`` to ``filtered_pairs``, ``rejected_pairs`` and ``filter_report``."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from ja_instruct.pipelines.data_filtering import nodes
from ja_instruct.pipelines.data_filtering.page import build_filter_page
from ja_instruct.pipelines.data_filtering.plots import plot_lengths, plot_rejections

# Passed in memory; no catalog entry saves them
NOT_SAVED = frozenset(
    {
        "conversation_pairs",
        "turn_violations",
        "rare_characters",
        "cleaned_pairs",
        "replacement_counts",
        "pair_violations",
        "violations",
        "rare_survivor_characters",
    }
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Wire the filter."""
    return Pipeline(
        [
            Node(
                nodes.extract_pairs,
                inputs=["raw_conversations", "params:data_filtering"],
                outputs=["conversation_pairs", "quarantined_records", "turn_violations"],
                name="extract_pairs",
            ),
            Node(
                nodes.find_rare_characters,
                inputs=["conversation_pairs", "params:data_filtering"],
                outputs="rare_characters",
                name="find_rare_characters",
            ),
            Node(
                nodes.apply_replacements,
                inputs=["conversation_pairs", "replacements"],
                outputs=["cleaned_pairs", "replacement_counts"],
                name="apply_replacements",
            ),
            Node(
                nodes.judge_pairs,
                inputs=[
                    "cleaned_pairs",
                    "turn_violations",
                    "rare_characters",
                    "banned_substrings",
                    "banned_instruction_substrings",
                    "target_tokenizer",
                    "evaluation_tasks",
                    "params:data_filtering",
                ],
                outputs="pair_violations",
                name="judge_pairs",
            ),
            Node(
                nodes.judge_survivors,
                inputs=["cleaned_pairs", "pair_violations", "params:data_filtering"],
                outputs=["violations", "rare_survivor_characters"],
                name="judge_survivors",
            ),
            Node(
                nodes.split_pairs,
                inputs=["cleaned_pairs", "violations"],
                outputs=["filtered_pairs", "rejected_pairs"],
                name="split_pairs",
            ),
            Node(
                nodes.report_filtering,
                inputs=[
                    "conversation_pairs",
                    "cleaned_pairs",
                    "quarantined_records",
                    "violations",
                    "rare_characters",
                    "rare_survivor_characters",
                    "replacement_counts",
                    "target_tokenizer",
                    "params:data_filtering",
                ],
                outputs="filter_report",
                name="report_filtering",
            ),
            Node(plot_rejections, "filter_report", "rejection_plot", name="plot_rejections"),
            Node(plot_lengths, "filter_report", "length_plot", name="plot_lengths"),
            Node(
                build_filter_page,
                inputs=["filter_report", "rejection_plot", "length_plot"],
                outputs="filter_page",
                name="build_filter_page",
            ),
        ],
        tags="data_filtering",
    )
