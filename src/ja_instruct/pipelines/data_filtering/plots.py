"""The plots of the filter: the pairs that each rule drops, and the lengths before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.pipelines.data_filtering.batches import FIELDS
from ja_instruct.pipelines.data_filtering.page import RuleCost, list_rule_costs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plotly.graph_objects import Figure
else:  # Kedro resolves the hints of a node; plotly takes a second to import
    Figure = Any

LOST, ON_PURPOSE, NOT_JAPANESE, SHARED = "#d9480f", "#a9c4f5", "#8b95a7", "#d3d8e1"
BEFORE, AFTER = "#8b95a7", "#1f6feb"

#: Longer rule ids are broken into two lines, so that labels do not fill a narrow plot; not if there
#: are many rules, whose lines would overlap in a low plot.
LABEL_CHARS = 16
FEW_RULES = 8
#: Position of length 0, which a logarithmic axis does not have.
ZERO_AT = 0.5
LENGTH_TICKS = {ZERO_AT: "0", 10: "10", 100: "100", 1000: "1k", 10_000: "10k", 100_000: "100k"}


def plot_rejections(filter_report: dict[str, Any]) -> Figure:
    """Plot the pairs that each rule drops, the rule that loses most Japanese pairs on top.

    The parts of a bar, from the left: pairs dropped by this rule alone that CLD2 detects as
    Japanese (estimated from a sample), other pairs dropped by this rule alone, and pairs that
    another rule drops as well. Rules for quality and duplicates drop Japanese on purpose and have a
    color of their own. Rules that drop no pairs are left out.
    """
    from plotly import graph_objects

    costs = list_rule_costs(filter_report)
    labels = [cost.rule for cost in costs]
    if len(costs) <= FEW_RULES:
        labels = [_break_label(rule) for rule in labels]
    figure = graph_objects.Figure()
    for name, color, pairs in _split_bars(costs):
        if any(pairs):
            figure.add_bar(
                x=pairs,
                y=labels,
                name=name,
                orientation="h",
                marker_color=color,
                texttemplate="%{x:,}" if color == LOST else None,
                textposition="inside",
                insidetextanchor="start",
                textangle=0,
                hovertemplate="%{x:,} pairs",
            )
    plot_height = 60 + 38 * max(len(costs), 2)
    figure.update_layout(
        title=_title(_headline_of_costs(costs, filter_report["summary"]["read"])),
        template="plotly_white",
        barmode="stack",
        bargap=0.3,
        height=plot_height + 190,
        margin={"l": 20, "r": 20, "t": 70, "b": 120},
        # plotly hides the legend of a single trace by default
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": -58 / plot_height, "traceorder": "normal"},
        uniformtext={"minsize": 9, "mode": "hide"},
        xaxis={"title": "pairs", "tickformat": ",", "nticks": 6, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1, "tickfont": {"size": 11}},
    )
    return figure


def _split_bars(costs: list[RuleCost]) -> list[tuple[str, str, list[int]]]:
    """Return the parts of all bars, from the left: name, color, and pairs by rule."""
    on_purpose = [cost.japanese - cost.lost for cost in costs]
    not_japanese = [cost.alone - cost.japanese for cost in costs]
    shared = [cost.pairs - cost.alone for cost in costs]
    return [
        ("Japanese, lost to this rule alone", LOST, [cost.lost for cost in costs]),
        ("Japanese, this rule alone, on purpose", ON_PURPOSE, on_purpose),
        ("not Japanese, this rule alone", NOT_JAPANESE, not_japanese),
        ("dropped by another rule as well", SHARED, shared),
    ]


def _headline_of_costs(costs: list[RuleCost], read: int) -> str:
    if not costs:
        return "No rule drops any pair"
    worst = costs[0]
    if not worst.lost:
        return "No rule alone drops pairs<br>that CLD2 detects as Japanese"
    percent = 100 * worst.lost / read
    return (
        f"{worst.rule} alone drops about {worst.lost:,}<br>"
        f"Japanese pairs, {percent:.1f} % of the {read:,} read"
    )


def plot_lengths(filter_report: dict[str, Any]) -> Figure:
    """Plot the lengths of both fields before and after the filter, in percent of the texts.

    There is one panel per field and unit: characters, and tokens if a tokenizer counted them.
    Dotted lines mark the medians. The bins are those of the report, each a fifth wider than the one
    before; the first contains the empty texts.
    """
    from plotly.subplots import make_subplots

    units = {unit: lengths for unit, lengths in filter_report["lengths"].items() if lengths}
    panels = [(unit, field) for unit in units for field in FIELDS]
    figure = make_subplots(
        rows=max(len(units), 1),
        cols=len(FIELDS),
        subplot_titles=[_describe_panel(units[unit], unit, field) for unit, field in panels],
        vertical_spacing=0.24,
        horizontal_spacing=0.14,
    )
    for place, (unit, field) in enumerate(panels):
        at = {"row": place // len(FIELDS) + 1, "col": place % len(FIELDS) + 1}
        _draw_lengths(figure, units[unit], unit, field, at)
    figure.update_xaxes(
        type="log",
        tickvals=list(LENGTH_TICKS),
        ticktext=list(LENGTH_TICKS.values()),
        tickangle=0,
        tickfont_size=11,
    )
    figure.update_yaxes(
        ticksuffix=" %", rangemode="tozero", nticks=5, tickfont_size=11, ticklabelstandoff=6
    )
    figure.update_annotations(font_size=11)
    figure.update_layout(
        title=_title(_headline_of_lengths(units)),
        template="plotly_white",
        height=150 + 200 * max(len(units), 1),
        margin={"l": 45, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.12},
    )
    return figure


def _draw_lengths(
    figure: Figure, lengths: Mapping[str, Any], unit: str, field: str, at: dict[str, int]
) -> None:
    """Draw one field before and after, with its medians, into the panel at this row and column."""
    for part, color in (("before", BEFORE), ("after", AFTER)):
        described = lengths[part][field]
        texts = max(sum(described["histogram"]), 1)
        shares = [100 * count / texts for count in described["histogram"]]
        figure.add_scatter(
            x=[edge or ZERO_AT for edge in lengths["edges"]],
            # the last value is repeated to give the last bin a width
            y=[*shares, *shares[-1:]],
            name=part,
            legendgroup=part,
            showlegend=at == {"row": 1, "col": 1},
            line={"shape": "hv", "color": color, "width": 2},
            fill="tozeroy" if part == "before" else None,
            hovertemplate=f"from %{{x:,}} {unit}: %{{y:.1f}} %",
            **at,
        )
        if described["texts"]:
            median = described["median"] or ZERO_AT
            figure.add_vline(median, line={"color": color, "width": 2, "dash": "dot"}, **at)


def _headline_of_lengths(units: Mapping[str, Any]) -> str:
    if not units:
        return "No lengths were measured"
    lengths = units.get("characters") or next(iter(units.values()))
    before, after = (lengths[part]["response"]["median"] for part in ("before", "after"))
    if before == after:
        return "The filter leaves the median response as long as it was"
    return f"The filter leaves {'shorter' if after < before else 'longer'} responses"


def _describe_panel(lengths: Mapping[str, Any], unit: str, field: str) -> str:
    before, after = (lengths[part][field]["median"] for part in ("before", "after"))
    return f"{field}, {unit}<br>median {before:,g} → {after:,g}"


def _break_label(rule: str) -> str:
    if len(rule) <= LABEL_CHARS or "_" not in rule:
        return rule
    start, end = rule.rsplit("_", 1)
    return f"{start}_<br>{end}"


def _title(text: str) -> dict[str, Any]:
    return {
        "text": text,
        "font": {"size": 15},
        "x": 0.02,
        "xanchor": "left",
        "y": 0.97,
        "yref": "container",
        "yanchor": "top",
    }
