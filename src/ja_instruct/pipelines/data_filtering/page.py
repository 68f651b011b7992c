"""The page that explains the filter to a person: what was dropped, why, and what to change."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.pipelines.data_filtering.batches import FIELDS, HISTORY
from ja_instruct.pipelines.data_filtering.violations import RULE_TRAITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plotly.graph_objects import Figure
else:  # Kedro resolves the hints of a node at run time; plotly takes a second to import
    Figure = Any

#: Rows rendered per list: the first ones always, the rest folded. With all of 20,000 rare
#: characters the page would be larger than its plots.
TOP = 30
LISTED_MAX = 2000
SHOWN_CHARS = 60

_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROL_PICTURES |= {0x7F: 0x2421}


class RuleCost(NamedTuple):
    """The pairs that a rule drops.

    Attributes:
        rule: Id of the rule.
        pairs: All pairs that violate it.
        first: Those that violate no earlier rule.
        alone: Those that violate no other rule.
        japanese: Estimate of those among ``alone`` whose two fields CLD2 detects as Japanese.
        share: ``japanese`` over ``alone``; 0 without any.
        on_purpose: The rule drops Japanese pairs on purpose.
    """

    rule: str
    pairs: int
    first: int
    alone: int
    japanese: int
    share: float
    on_purpose: bool

    @property
    def lost(self) -> int:
        """``japanese`` if the rule is meant to keep Japanese pairs, else 0."""
        return 0 if self.on_purpose else self.japanese


class Step(NamedTuple):
    """A looser value of a parameter, and the least number of pairs that it frees."""

    value: int
    pairs: int


class Listed(NamedTuple):
    """A list of ``filter_report`` with the texts that a rule found.

    Attributes:
        rule: Id of the rule.
        japanese: Heading in Japanese.
        english: Heading in English.
        banned_from: See ``list_steps``; None unless characters are banned by their count.
    """

    rule: str
    japanese: str
    english: str
    banned_from: int | None = None

    @property
    def edited_in(self) -> str:
        """The parameter or word list to edit."""
        return RULE_TRAITS[self.rule].edited_in


LISTS = {
    "rare_characters": Listed("rare_character", "珍しい文字", "Rare characters", 1),
    "rare_survivor_characters": Listed(
        "rare_survivor_character", "残ったペアで珍しい文字", "Characters rare in the pairs left", 0
    ),
    "banned_substrings": Listed("banned_substring", "禁止文字列", "Banned substrings"),
    "banned_instruction_substrings": Listed(
        "banned_instruction_substring", "指示の禁止文字列", "Substrings banned in instructions"
    ),
}


def list_rule_costs(filter_report: Mapping[str, Any]) -> list[RuleCost]:
    """Return the rules that drop pairs, those that lose most Japanese pairs first.

    Rules that lose equally many are sorted by all their pairs, then as in the report.
    """
    costs = []
    for rule, pairs in filter_report["rejected_by_rule"].items():
        if pairs:
            good = filter_report["good_data"][rule]
            cost = RuleCost(
                rule=rule,
                pairs=pairs,
                first=filter_report["rejected_by_first_rule"][rule],
                alone=filter_report["rejected_by_rule_alone"][rule],
                japanese=good["estimate"],
                share=good["in_language"] / good["sampled"] if good["sampled"] else 0.0,
                on_purpose=RULE_TRAITS[rule].on_purpose,
            )
            costs.append(cost)
    return sorted(costs, key=lambda cost: (-cost.lost, -cost.pairs))


def sort_texts(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the texts that a rule found, the one with most pairs of its own first."""
    return sorted(found.items(), key=lambda item: (-item[1]["alone"], -item[1]["pairs"]))


def list_steps(
    found: Mapping[str, Mapping[str, Any]], alone: int, *, banned_from: int
) -> list[Step]:
    """Return looser values, each half of the one before, of a limit on the counts of characters.

    A step counts the pairs whose only violation is a single character that the value frees. It is a
    lower bound, because pairs with several freed characters come back as well; the rules that have
    not seen these pairs (CLD2, and the count among the survivors) may still drop some of them. The
    last value bans nothing. Values that free no pairs are left out.

    ``found`` has each character's count in the corpus (``times``) and the pairs that violate
    nothing else (``alone``); the argument ``alone`` counts those that violate only this rule.
    ``banned_from`` is 1 if characters with exactly the parameter's count are banned, else 0.
    """
    most = max((counts["times"] for counts in found.values()), default=0)
    bans_none = 1 - banned_from
    steps = []
    value = (most + 1 - banned_from) // 2
    while value > bans_none:
        freed = [counts for counts in found.values() if counts["times"] >= value + banned_from]
        steps.append(Step(value, sum(counts["alone"] for counts in freed)))
        value //= 2
    steps.append(Step(bans_none, alone if found else 0))
    return [step for step in steps if step.pairs]


def build_filter_page(
    filter_report: dict[str, Any], rejection_plot: Figure, length_plot: Figure
) -> str:
    """Return one self-contained HTML page in Japanese and English.

    What to change comes first: the rule that loses most Japanese pairs, the single changes that
    bring most of them back, and where to make them. Then follow the counts, lists and examples.
    """
    from jinja2 import Environment, PackageLoader

    costs = list_rule_costs(filter_report)
    found: dict[str, Any] = {}
    steps: dict[str, list[Step]] = {}
    for name, listed in LISTS.items():
        found[name], steps[name] = filter_report[name], []
        if listed.banned_from is not None:
            found[name] = filter_report[name]["found"]
            alone = sum(cost.alone for cost in costs if cost.rule == listed.rule)
            steps[name] = list_steps(found[name], alone, banned_from=listed.banned_from)
    replaced = [item for item in filter_report["replacements"].items() if item[1]]
    plots = {"full_html": False, "config": {"responsive": True, "displayModeBar": False}}
    environment = Environment(loader=PackageLoader("ja_instruct"), autoescape=True)
    environment.filters |= {
        "number": "{:,}".format,
        "show": show,
        "code_point": code_point,
        "mark": mark,
    }
    return environment.get_template("filter_report.html.jinja").render(
        report=filter_report,
        advice=_advise(costs, found, steps, filter_report["summary"]["read"]),
        costs=costs,
        traits=RULE_TRAITS,
        fields=(HISTORY, *FIELDS),
        steps={LISTS[name].edited_in: listed for name, listed in steps.items() if listed},
        lists=[(LISTS[name], sort_texts(entries)) for name, entries in found.items() if entries],
        replaced=sorted(replaced, key=lambda item: -item[1]),
        top=TOP,
        listed_max=LISTED_MAX,
        rejection_plot=rejection_plot.to_html(
            include_plotlyjs=True, div_id="rejection-plot", **plots
        ),
        length_plot=length_plot.to_html(include_plotlyjs=False, div_id="length-plot", **plots),
    )


def _advise(
    costs: list[RuleCost], found: Mapping[str, Any], steps: Mapping[str, list[Step]], read: int
) -> dict[str, Any]:
    """Name the rule that loses most Japanese pairs, and the single changes that return most."""
    if not costs or not costs[0].lost:
        return {"worst": None, "changes": []}
    lossy = {cost.rule: cost for cost in costs if cost.lost}
    changes: list[tuple[float, dict[str, Any]]] = []
    for name, listed in LISTS.items():
        texts = sort_texts(found[name])
        if listed.rule not in lossy or not texts:
            continue
        share = lossy[listed.rule].share
        if steps[name]:
            first = steps[name][0]
            step = Step(first.value, round(first.pairs * share))
            changes.append((step.pairs, {"step": step, "edited_in": listed.edited_in}))
        text, counts = texts[0]
        change = {
            "text": text,
            "alone": counts["alone"],
            "edited_in": listed.edited_in,
            "freed_at": None,
        }
        if listed.banned_from is not None:
            change["freed_at"] = counts["times"] - listed.banned_from
        changes.append((counts["alone"] * share, change))
    changes.sort(key=lambda change: -change[0])
    return {
        "worst": costs[0],
        "percent": f"{100 * costs[0].lost / read:.1f}",
        "edited_in": RULE_TRAITS[costs[0].rule].edited_in,
        "changes": [change for returned, change in changes if returned],
    }


def mark(text: str, matched: str) -> list[tuple[str, bool]]:
    """Split a text into parts, each with whether it is the match.

    >>> mark("英訳と翻訳", "訳")
    [('英', False), ('訳', True), ('と翻', False), ('訳', True)]
    """
    if not matched:
        return [(_make_visible(text), False)] if text else []
    parts: list[tuple[str, bool]] = []
    for place, part in enumerate(text.split(matched)):
        if place:
            parts.append((_make_visible(matched), True))
        if part:
            parts.append((_make_visible(part), False))
    return parts


def code_point(text: str) -> str:
    """Return the code point of a single character, or an empty string."""
    return f"U+{ord(text):04X}" if len(text) == 1 else ""


def show(text: str) -> str:
    r"""Return a text short enough for a table and with its invisible characters made visible.

    >>> show("\u0301"), show(" Weekly "), show("\u00ad")
    ('◌́', '␣Weekly␣', 'SOFT HYPHEN')
    """
    if len(text) == 1:
        category = unicodedata.category(text)
        if category.startswith("M"):
            return f"◌{text}"
        if category in ("Cf", "Zs", "Zl", "Zp", "Co", "Cn"):
            return unicodedata.name(text, code_point(text))
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
    inner = shown.strip(" ")
    start = len(shown) - len(shown.lstrip(" "))
    end = len(shown) - start - len(inner)
    return _make_visible(f"{'␣' * start}{inner}{'␣' * end}").replace("\t", "␉").replace("\n", "␊")


def _make_visible(text: str) -> str:
    """Replace control characters, which HTML forbids, by their pictures."""
    return text.translate(_CONTROL_PICTURES)
