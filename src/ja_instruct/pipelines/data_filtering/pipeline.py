"""``raw_conversations`` to ``filtered_pairs``, ``rejected_pairs`` and ``filter_report``."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from ja_instruct.pipelines.data_filtering import nodes


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Wire the filter."""
    return Pipeline(
        [
            Node(
                nodes.check_word_lists,
                inputs=["replacements", "banned_substrings", "banned_instruction_substrings"],
                outputs="word_lists",
                name="check_word_lists",
            ),
            Node(
                nodes.extract_pairs,
                inputs="raw_conversations",
                outputs="conversation_pairs",
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
                inputs=["conversation_pairs", "word_lists"],
                outputs=["cleaned_pairs", "replacement_counts"],
                name="apply_replacements",
            ),
            Node(
                nodes.judge_pairs,
                inputs=["cleaned_pairs", "rare_characters", "word_lists", "params:data_filtering"],
                outputs="first_verdicts",
                name="judge_pairs",
            ),
            Node(
                nodes.judge_survivors,
                inputs=["cleaned_pairs", "first_verdicts", "params:data_filtering"],
                outputs=["verdicts", "rare_survivor_characters"],
                name="judge_survivors",
            ),
            Node(
                nodes.split_pairs,
                inputs=["cleaned_pairs", "verdicts"],
                outputs=["filtered_pairs", "rejected_pairs"],
                name="split_pairs",
            ),
            Node(
                nodes.report_filtering,
                inputs=[
                    "conversation_pairs",
                    "cleaned_pairs",
                    "verdicts",
                    "rare_characters",
                    "rare_survivor_characters",
                    "replacement_counts",
                ],
                outputs="filter_report",
                name="report_filtering",
            ),
        ],
        tags="data_filtering",
    )
