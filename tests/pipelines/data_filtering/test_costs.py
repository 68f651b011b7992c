"""What is read out of ``filter_report``, against pairs judged one by one."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering.costs import (
    Step,
    list_rule_costs,
    list_steps,
    list_text_costs,
)
from ja_instruct.pipelines.data_filtering.explanations import explain
from ja_instruct.pipelines.data_filtering.violations import RULES

corpora = st.lists(st.text("弊僚智腰ぺə", min_size=1, max_size=6), min_size=1, max_size=30)


def make_report(**rules):
    """A report in which each rule is against (pairs, first, alone, estimate) pairs."""
    return {
        "rejected_by_rule": {rule: counts[0] for rule, counts in rules.items()},
        "rejected_by_first_rule": {rule: counts[1] for rule, counts in rules.items()},
        "rejected_by_rule_alone": {rule: counts[2] for rule, counts in rules.items()},
        "good_data": {
            rule: {
                "alone": counts[2],
                "sampled": counts[2],
                "in_language": counts[3],
                "estimate": counts[3],
            }
            for rule, counts in rules.items()
        },
    }


def test_the_rule_that_loses_most_comes_first():
    costs = list_rule_costs(
        make_report(
            banned_substring=(50, 50, 20, 5),
            rare_character=(30, 20, 10, 9),
            language=(40, 40, 40, 0),
            token_count=(0, 0, 0, 0),
        )
    )
    assert [cost.rule for cost in costs] == ["rare_character", "banned_substring", "language"]
    assert [cost.lost for cost in costs] == [9, 5, 0]
    assert costs[0][1:6] == (30, 20, 10, 9, 0.9)


def test_japanese_dropped_on_purpose_is_not_lost():
    costs = list_rule_costs(
        make_report(exact_duplicate=(90, 90, 90, 90), rare_character=(3, 3, 3, 3))
    )
    assert [(cost.rule, cost.japanese, cost.lost) for cost in costs] == [
        ("rare_character", 3, 3),
        ("exact_duplicate", 90, 0),
    ]


def test_a_rule_that_is_not_known_is_counted_after_the_known():
    costs = list_rule_costs(make_report(haiku=(3, 3, 3, 3), rare_character=(3, 3, 3, 3)))
    assert [cost.rule for cost in costs] == ["rare_character", "haiku"]
    assert costs[1].lost == 3


def test_a_rule_without_an_estimate_loses_nothing():
    report = make_report(rare_character=(3, 3, 3, 3)) | {"good_data": {}}
    assert [(cost.alone, cost.lost, cost.share) for cost in list_rule_costs(report)] == [(3, 0, 0)]


def test_every_rule_is_explained_in_both_languages():
    for rule in RULES:
        assert explain(rule) != explain("haiku"), rule
        assert all(explain(rule)[:2])


def test_texts_by_what_they_alone_cost():
    found = {
        "often": {"pairs": 9, "alone": 1},
        "alone": {"pairs": 3, "alone": 3},
        "also": {"pairs": 10, "alone": 1},
    }
    assert [cost.text for cost in list_text_costs(found)] == ["alone", "also", "often"]
    assert list_text_costs({}) == []


@given(corpora, st.integers(0, 12), st.sampled_from([0, 1]))
def test_steps_are_what_judging_each_pair_again_gives(texts, limit, banned_from):
    times = Counter("".join(texts))

    def find_banned(text, value):
        return {character for character in text if times[character] < value + banned_from}

    found = {
        character: {
            "times": times[character],
            "alone": sum(find_banned(text, limit) == {character} for text in texts),
        }
        for character in times
        if times[character] < limit + banned_from
    }
    rejected = [text for text in texts if find_banned(text, limit)]
    steps = list_steps(found, len(rejected), banned_from=banned_from)
    assert bool(steps) == bool(rejected)
    for step in steps:
        freed = [text for text in rejected if not find_banned(text, step.value)]
        single = [text for text in freed if len(find_banned(text, limit)) == 1]
        assert step.value < limit
        assert step.pairs == len(freed) if step is steps[-1] else step.pairs == len(single)
        assert step.pairs <= len(freed)


def test_steps_end_where_nothing_is_banned():
    found = {"弊": {"times": 3, "alone": 2}}
    assert list_steps(found, 5, banned_from=1) == [Step(1, 2), Step(0, 5)]
    assert list_steps(found, 5, banned_from=0) == [Step(2, 2), Step(1, 5)]
    assert list_steps({}, 0, banned_from=1) == []
