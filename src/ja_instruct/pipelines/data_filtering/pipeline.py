"""``raw_conversations`` to ``filtered_pairs``, ``rejected_pairs`` and ``filter_report``."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from ja_instruct.pipelines.data_filtering import nodes
from ja_instruct.pipelines.data_filtering.page import build_filter_page
from ja_instruct.pipelines.data_filtering.plots import plot_lengths, plot_rejections
from ja_instruct.pipelines.data_filtering.timing import timed


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Wire the filter."""
    return Pipeline(
        [
            Node(
                timed(nodes.extract_pairs),
                inputs=["raw_conversations", "params:data_filtering"],
                outputs=["conversation_pairs", "quarantined_records", "extraction_seconds"],
                name="extract_pairs",
            ),
            Node(
                timed(nodes.find_rare_characters),
                inputs=["conversation_pairs", "params:data_filtering"],
                outputs=["rare_characters", "counting_seconds"],
                name="find_rare_characters",
            ),
            Node(
                timed(nodes.apply_replacements),
                inputs=["conversation_pairs", "replacements"],
                outputs=["cleaned_pairs", "replacement_counts", "replacement_seconds"],
                name="apply_replacements",
            ),
            Node(
                timed(nodes.judge_pairs),
                inputs=[
                    "cleaned_pairs",
                    "rare_characters",
                    "banned_substrings",
                    "banned_instruction_substrings",
                    "target_tokenizer",
                    "evaluation_tasks",
                    "params:data_filtering",
                ],
                outputs=["pair_violations", "judging_seconds"],
                name="judge_pairs",
            ),
            Node(
                timed(nodes.judge_survivors),
                inputs=["cleaned_pairs", "pair_violations", "params:data_filtering"],
                outputs=["violations", "rare_survivor_characters", "survivor_judging_seconds"],
                name="judge_survivors",
            ),
            Node(
                timed(nodes.split_pairs),
                inputs=["cleaned_pairs", "violations", "params:data_filtering"],
                outputs=["filtered_pairs", "rejected_pairs", "splitting_seconds"],
                name="split_pairs",
            ),
            Node(
                nodes.report_filtering,
                inputs={
                    "conversation_pairs": "conversation_pairs",
                    "cleaned_pairs": "cleaned_pairs",
                    "quarantined_records": "quarantined_records",
                    "violations": "violations",
                    "rare_characters": "rare_characters",
                    "rare_survivor_characters": "rare_survivor_characters",
                    "replacement_counts": "replacement_counts",
                    "target_tokenizer": "target_tokenizer",
                    "parameters": "params:data_filtering",
                    "extract_pairs": "extraction_seconds",
                    "find_rare_characters": "counting_seconds",
                    "apply_replacements": "replacement_seconds",
                    "judge_pairs": "judging_seconds",
                    "judge_survivors": "survivor_judging_seconds",
                    "split_pairs": "splitting_seconds",
                },
                outputs="filter_report",
                name="report_filtering",
            ),
            Node(
                plot_rejections,
                inputs="filter_report",
                outputs="rejection_plot",
                name="plot_rejections",
            ),
            Node(
                plot_lengths,
                inputs="filter_report",
                outputs="length_plot",
                name="plot_lengths",
            ),
            Node(
                build_filter_page,
                inputs=["filter_report", "rejection_plot", "length_plot"],
                outputs="filter_page",
                name="build_filter_page",
            ),
        ],
        tags="data_filtering",
    )
