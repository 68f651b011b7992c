"""The plots of the filter."""

import math

from filter_pairs import make_rule_counts

from ja_instruct.pipelines.data_filtering.plots import (
    LOST,
    ON_PURPOSE,
    plot_lengths,
    plot_rejections,
)


def make_report(**rules):
    """Return a report on 1,000 pairs; each rule drops (all, alone, Japanese) of them."""
    counts = {rule: (pairs, pairs, *rest) for rule, (pairs, *rest) in rules.items()}
    return {"summary": {"read": 1000}, **make_rule_counts(**counts)}


def describe(median, histogram):
    return {"texts": sum(histogram), "median": median, "histogram": histogram}


def make_lengths():
    fields = {"instruction": describe(1.0, [1, 0, 3]), "response": describe(2.0, [0, 4, 0])}
    after = {"instruction": describe(1.0, [0, 2, 0]), "response": describe(1.0, [2, 0, 0])}
    return {"edges": [0, 1, 2, 3], "before": fields, "after": after}


def read_bars(figure):
    """Return the length of each bar, by the name of its part and the rule."""
    return {
        trace.name: {
            rule.replace("<br>", ""): pairs
            for rule, pairs in zip(trace.y, trace.x, strict=True)
            if pairs
        }
        for trace in figure.data
    }


def test_a_bar_shows_all_pairs_that_a_rule_drops():
    report = make_report(
        banned_substring=(100, 60, 40), rare_survivor_character=(80, 80, 80), language=(30, 30, 0)
    )
    figure = plot_rejections(report)
    assert read_bars(figure) == {
        "Japanese, lost to this rule alone": {
            "banned_substring": 40,
            "rare_survivor_character": 80,
        },
        "not Japanese, this rule alone": {"banned_substring": 20, "language": 30},
        "dropped by another rule as well": {"banned_substring": 40},
    }
    assert figure.layout.barmode == "stack"


def test_the_rule_that_loses_most_is_on_top_and_in_the_title():
    report = make_report(banned_substring=(500, 60, 40), rare_character=(80, 80, 75))
    figure = plot_rejections(report)
    assert list(figure.data[0].y) == ["rare_character", "banned_substring"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.title.text.replace("<br>", " ") == (
        "rare_character alone drops about 75 Japanese pairs, 7.5 % of the 1,000 read"
    )


def test_pairs_dropped_on_purpose_have_their_own_color():
    figure = plot_rejections(
        make_report(exact_duplicate=(90, 90, 90), rare_character=(5, 5, 5), cut_off=(2, 2, 2))
    )
    by_color = {
        trace.marker.color: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data
    }
    assert by_color[LOST] == {"rare_character": 5, "exact_duplicate": 0, "cut_off": 0}
    assert by_color[ON_PURPOSE] == {"rare_character": 0, "exact_duplicate": 90, "cut_off": 2}


def test_rules_without_violations_are_left_out():
    figure = plot_rejections(make_report(token_count=(0, 0, 0), language=(3, 3, 0)))
    assert {rule for trace in figure.data for rule in trace.y} == {"language"}
    assert figure.layout.title.text == "No rule alone drops pairs<br>that CLD2 detects as Japanese"


def test_nothing_rejected():
    figure = plot_rejections(make_report(language=(0, 0, 0)))
    assert not figure.data
    assert figure.layout.title.text == "No rule drops any pair"


def test_lengths_are_percentages_per_bin():
    figure = plot_lengths({"lengths": {"characters": make_lengths(), "tokens": None}})
    shown = {(trace.name, trace.xaxis): trace for trace in figure.data}
    assert list(shown["before", "x"].y[:3]) == [25, 0, 75]
    assert list(shown["after", "x2"].y[:3]) == [100, 0, 0]
    for trace in figure.data:
        assert trace.line.shape == "hv"
        # a length of 0 has no logarithm
        assert list(trace.x) == [0.5, 1, 2, 3]
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
    assert figure.layout.title.text == "The filter leaves shorter responses"


def test_medians_are_marked_in_every_panel():
    lengths = make_lengths()
    figure = plot_lengths({"lengths": {"characters": lengths, "tokens": lengths}})
    lines = {(line.xref, line.x0) for line in figure.layout.shapes}
    assert lines == {("x", 1), ("x2", 2), ("x2", 1), ("x3", 1), ("x4", 2), ("x4", 1)}
    assert [annotation.text for annotation in figure.layout.annotations] == [
        f"{field}, {unit}<br>median {medians}"
        for unit in ("characters", "tokens")
        for field, medians in (("instruction", "1 → 1"), ("response", "2 → 1"))
    ]


def test_lengths_without_kept_pairs():
    lengths = make_lengths()
    lengths["after"] = dict.fromkeys(("instruction", "response"), describe(0.0, [0, 0, 0]))
    figure = plot_lengths({"lengths": {"characters": lengths}})
    after = [trace for trace in figure.data if trace.name == "after"]
    assert all(share == 0 for trace in after for share in trace.y)
    assert len(figure.layout.shapes) == 2
    assert all(math.isfinite(x) for trace in figure.data for x in trace.x)


def test_plots_survive_being_saved_as_json():
    from plotly import io

    for figure in (
        plot_rejections(make_report(language=(3, 3, 0))),
        plot_lengths({"lengths": {"characters": make_lengths(), "tokens": None}}),
    ):
        assert io.from_json(figure.to_json()) == figure
