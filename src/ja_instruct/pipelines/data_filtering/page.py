"""The page that explains the filter to a person: what was dropped, why, and what to change."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.pipelines.data_filtering.batches import FIELDS
from ja_instruct.pipelines.data_filtering.costs import (
    RuleCost,
    Step,
    list_rule_costs,
    list_steps,
    list_text_costs,
)
from ja_instruct.pipelines.data_filtering.explanations import explain
from ja_instruct.pipelines.data_filtering.page_template import FILTER_PAGE_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plotly.graph_objects import Figure
else:  # Kedro resolves the hints of a node; plotly takes a second to import
    Figure = Any

#: Of each list, so many entries are in sight, and so many in the page at all: with 20,000 rare
#: characters it would be larger than its plots.
TOP = 30
LISTED_MAX = 2000
SHOWN_CHARS = 60


class Listed(NamedTuple):
    """A list of ``filter_report``: what a rule found.

    Attributes:
        rule: The rule.
        japanese: The heading.
        english: The same.
        counted: Whether it holds characters that are banned by their count.
        banned_from: As ``list_steps`` takes it.
    """

    rule: str
    japanese: str
    english: str
    counted: bool = False
    banned_from: int = 0


LISTS = {
    "rare_characters": Listed("rare_character", "珍しい文字", "Rare characters", True, 1),
    "rare_survivor_characters": Listed(
        "rare_survivor_character", "残った組で珍しい文字", "Characters rare in what is left", True
    ),
    "banned_substrings": Listed("banned_substring", "禁止文字列", "Banned texts"),
    "banned_instruction_substrings": Listed(
        "banned_instruction_substring", "指示の禁止文字列", "Texts banned in instructions"
    ),
}

_CARDS = {
    "read": "読んだ組 · read",
    "kept": "残した組 · kept",
    "rejected": "落とした組 · rejected",
    "kept_percent": "残した割合 · kept",
    "quarantined": "読めなかった記録 · quarantined",
}
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROL_PICTURES |= {0x7F: 0x2421}


def build_filter_page(
    filter_report: dict[str, Any], rejection_plot: Figure, length_plot: Figure
) -> str:
    """Return one self-contained HTML page in Japanese and English.

    What to change comes first: the rule that loses most pairs which CLD2 finds Japanese, the looser
    parameter, text or character that brings most of them back, and where it is edited. Then the
    figures, lists and examples behind that.
    """
    from jinja2 import Environment

    costs = list_rule_costs(filter_report)
    found = {name: _get_found(filter_report, name) for name in LISTS}
    touched = sorted(filter_report.get("replacements", {}).items(), key=lambda item: -item[1])
    touched = [(text, pairs) for text, pairs in touched if pairs]
    seconds = filter_report.get("seconds", {})
    plots = {"full_html": False, "config": {"responsive": True, "displayModeBar": False}}
    template = Environment(autoescape=True).from_string(FILTER_PAGE_TEMPLATE)
    return template.render(
        advice=_advise(costs, found, filter_report["summary"]["read"]),
        cards=_fill_cards(filter_report["summary"]),
        rules=_describe_rules(costs, filter_report),
        silent=[rule for rule, pairs in filter_report["rejected_by_rule"].items() if not pairs],
        steps={
            explain(listed.rule).edited_in: steps
            for name, listed in LISTS.items()
            if (steps := _list_steps(costs, found, name))
        },
        lists=[_fill_list(name, entries) for name, entries in found.items() if entries],
        replacements=[{"text": _show(text), "pairs": pairs} for text, pairs in touched[:TOP]],
        replacements_touching=len(touched),
        replacements_count=len(filter_report.get("replacements", {})),
        times={
            "手順ごと · by step": seconds.get("steps", {}),
            "規則ごと · by rule": seconds.get("rules", {}),
        },
        rejection_plot=rejection_plot.to_html(
            include_plotlyjs=True, div_id="rejection-plot", **plots
        ),
        length_plot=length_plot.to_html(include_plotlyjs=False, div_id="length-plot", **plots),
    )


def _describe_rules(
    costs: list[RuleCost], filter_report: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            "place": place,
            "cost": cost,
            "explanation": explain(cost.rule),
            "examples": _show_examples(filter_report, cost.rule),
        }
        for place, cost in enumerate(costs, 1)
    ]


def _get_found(filter_report: Mapping[str, Any], name: str) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Any] = filter_report.get(name, {})
    return found.get("found", {}) if LISTS[name].counted else found


def _advise(costs: list[RuleCost], found: Mapping[str, Any], read: int) -> dict[str, Any]:
    """Name the rule that loses most Japanese pairs, and the single changes that return most."""
    if not costs or not costs[0].lost:
        return {"worst": None, "changes": []}
    changes: list[tuple[float, dict[str, Any]]] = []
    for name, listed in LISTS.items():
        cost = next((cost for cost in costs if cost.rule == listed.rule and cost.lost), None)
        texts = list_text_costs(found[name])
        if cost is None or not texts:
            continue
        edited_in = explain(listed.rule).edited_in
        steps = _list_steps(costs, found, name)
        if steps:
            step = Step(steps[0].value, round(steps[0].pairs * cost.share))
            changes.append((step.pairs, {"step": step, "edited_in": edited_in}))
        counts = found[name][texts[0].text]
        change = {
            "text": _show(texts[0].text),
            "code_point": _code_point(texts[0].text),
            "alone": texts[0].alone,
            "edited_in": edited_in,
            "freed_at": counts["times"] - listed.banned_from if listed.counted else None,
        }
        changes.append((texts[0].alone * cost.share, change))
    changes.sort(key=lambda change: -change[0])
    return {
        "worst": costs[0],
        "percent": f"{100 * costs[0].lost / read:.1f}",
        "edited_in": explain(costs[0].rule).edited_in,
        "changes": [change for returned, change in changes if returned],
    }


def _list_steps(costs: list[RuleCost], found: Mapping[str, Any], name: str) -> list[Step]:
    listed = LISTS[name]
    if not listed.counted:
        return []
    alone = sum(cost.alone for cost in costs if cost.rule == listed.rule)
    steps = list_steps(found[name], alone, banned_from=listed.banned_from)
    return [step for step in steps if step.pairs]


def _fill_cards(summary: Mapping[str, Any]) -> dict[str, str]:
    cards = {}
    for name, value in summary.items():
        shown = f"{value:,}" if isinstance(value, int | float) else str(value)
        label = _CARDS.get(name, name.replace("_", " "))
        cards[label] = f"{shown} %" if name.endswith("_percent") else shown
    return cards


def _fill_list(name: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    listed = LISTS[name]
    costs = [
        {
            "text": _show(cost.text),
            "code_point": _code_point(cost.text),
            "times": entries[cost.text].get("times"),
            "pairs": cost.pairs,
            "alone": cost.alone,
        }
        for cost in list_text_costs(entries)[:LISTED_MAX]
    ]
    return {
        "japanese": listed.japanese,
        "english": listed.english,
        "counted": listed.counted,
        "count": len(entries),
        "edited_in": explain(listed.rule).edited_in,
        "top": costs[:TOP],
        "rest": costs[TOP:],
        "left_out": max(0, len(entries) - LISTED_MAX),
    }


def _show_examples(filter_report: Mapping[str, Any], rule: str) -> list[dict[str, Any]]:
    examples = []
    for example in filter_report.get("examples", {}).get(rule, []):
        matched = example["matched"]
        sought = matched if explain(rule).quotes else ""
        examples.append(
            {
                "record": example["record"],
                "field": example["side"],
                "matched": _show(matched),
                "code_point": _code_point(matched),
                "fields": {
                    field: _mark(example[field], sought if field == example["side"] else "")
                    for field in FIELDS
                },
            }
        )
    return examples


def _mark(text: str, matched: str) -> list[tuple[str, bool]]:
    """Split a text into parts, each with whether it is what was found."""
    if not matched:
        return [(_make_visible(text), False)] if text else []
    parts: list[tuple[str, bool]] = []
    for place, part in enumerate(text.split(matched)):
        if place:
            parts.append((_make_visible(matched), True))
        if part:
            parts.append((_make_visible(part), False))
    return parts


def _code_point(text: str) -> str:
    """Return that of a single character, or nothing."""
    return f"U+{ord(text):04X}" if len(text) == 1 else ""


def _show(text: str) -> str:
    r"""Return a text short enough for a table, and so that a person sees something.

    >>> _show("\u0301"), _show(" Weekly "), _show("\u00ad")
    ('◌́', '␣Weekly␣', 'SOFT HYPHEN')
    """
    if len(text) == 1:
        category = unicodedata.category(text)
        if category.startswith("M"):
            return f"◌{text}"
        if category in ("Cf", "Zs", "Zl", "Zp", "Co", "Cn"):
            return unicodedata.name(text, _code_point(text))
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
    inner = shown.strip(" ")
    start = len(shown) - len(shown.lstrip(" "))
    end = len(shown) - start - len(inner)
    return _make_visible(f"{'␣' * start}{inner}{'␣' * end}").replace("\t", "␉").replace("\n", "␊")


def _make_visible(text: str) -> str:
    """Put the pictures of control characters in their place: HTML has none of them."""
    return text.translate(_CONTROL_PICTURES)
