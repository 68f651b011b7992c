"""What each rule, text and character costs: ``filter_report`` put in order for its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.pipelines.data_filtering.explanations import explain
from ja_instruct.pipelines.data_filtering.violations import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping


class RuleCost(NamedTuple):
    """The pairs that a rule is against.

    Attributes:
        rule: Its id.
        pairs: All of them.
        first: Those that no earlier rule is against.
        alone: Those that no other rule is against.
        japanese: Estimate of those among ``alone`` whose two fields CLD2 finds Japanese.
        share: ``japanese`` over ``alone``; 0 without any.
        on_purpose: Whether the rule looks for something else than a drift into another language,
            so that its pairs being Japanese says nothing against it.
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
        """``japanese``, where the rule was meant to keep what is Japanese, else 0."""
        return 0 if self.on_purpose else self.japanese


class TextCost(NamedTuple):
    """A banned text, the pairs that hold it, and those with nothing else against them."""

    text: str
    pairs: int
    alone: int


class Step(NamedTuple):
    """A looser value of a parameter, and the pairs that it would free at least."""

    value: int
    pairs: int


def list_rule_costs(filter_report: Mapping[str, Any]) -> list[RuleCost]:
    """Return the rules that are against some pair, those that lose most Japanese pairs first.

    Rules that lose equally many are ordered by their pairs, then as in ``RULES``; ids that are not
    in ``RULES`` come after those that are.

    >>> report = {
    ...     "rejected_by_rule": {"banned_substring": 5, "rare_character": 9, "language": 0},
    ...     "rejected_by_first_rule": {"banned_substring": 5, "rare_character": 6},
    ...     "rejected_by_rule_alone": {"banned_substring": 2, "rare_character": 6},
    ...     "good_data": {"rare_character": {"sampled": 6, "in_language": 3, "estimate": 3}},
    ... }
    >>> [(cost.rule, cost.pairs, cost.alone, cost.lost) for cost in list_rule_costs(report)]
    [('rare_character', 9, 6, 3), ('banned_substring', 5, 2, 0)]
    """
    by_rule = filter_report["rejected_by_rule"]
    rules = [rule for rule in RULES if rule in by_rule]
    rules += [rule for rule in by_rule if rule not in RULES]
    costs = []
    for rule in rules:
        good = filter_report.get("good_data", {}).get(rule, {})
        sampled = good.get("sampled", 0)
        costs.append(
            RuleCost(
                rule=rule,
                pairs=by_rule[rule],
                first=filter_report["rejected_by_first_rule"].get(rule, 0),
                alone=filter_report["rejected_by_rule_alone"].get(rule, 0),
                japanese=good.get("estimate", 0),
                share=good["in_language"] / sampled if sampled else 0.0,
                on_purpose=explain(rule).on_purpose,
            )
        )
    return sorted(
        (cost for cost in costs if cost.pairs), key=lambda cost: (-cost.lost, -cost.pairs)
    )


def list_text_costs(found: Mapping[str, Mapping[str, Any]]) -> list[TextCost]:
    """Return what a rule found, that which alone costs most pairs first.

    >>> found = {"翻訳": {"pairs": 9, "alone": 1}, ".com": {"pairs": 4, "alone": 3}}
    >>> list_text_costs(found)[0]
    TextCost(text='.com', pairs=4, alone=3)
    """
    costs = [TextCost(text, counts["pairs"], counts["alone"]) for text, counts in found.items()]
    return sorted(costs, key=lambda cost: (-cost.alone, -cost.pairs))


def list_steps(
    found: Mapping[str, Mapping[str, Any]], alone: int, *, banned_from: int
) -> list[Step]:
    """Return looser values of a parameter that bans characters by their count, each halved.

    A pair counts where one character alone, freed by the value, is against it. A pair that several
    freed characters are against would come back as well, so there are at least as many; the rules
    that have not been asked about these pairs, CLD2 and the count among the survivors, may still
    drop some of them. The last value bans none.

    Args:
        found: By character: ``times``, its count in the corpus, and ``alone``.
        alone: The pairs that this rule alone is against.
        banned_from: 1 where characters held as often as the parameter says are banned, 0 where
            those held less often are.

    >>> found = {"智": {"times": 19, "alone": 6}, "諾": {"times": 4, "alone": 2}}
    >>> steps = list_steps(found, 11, banned_from=1)
    >>> [(step.value, step.pairs) for step in steps]
    [(9, 6), (4, 6), (2, 8), (1, 8), (0, 11)]
    """
    most = max((counts["times"] for counts in found.values()), default=0)
    bans_none = 1 - banned_from
    steps = []
    value = (most + 1 - banned_from) // 2
    while value > bans_none:
        freed = [counts for counts in found.values() if counts["times"] >= value + banned_from]
        steps.append(Step(value, sum(counts["alone"] for counts in freed)))
        value //= 2
    return [*steps, Step(bans_none, alone)] if found else []
