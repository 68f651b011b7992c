import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ja_instruct.pipelines.inference.few_shot_examples import (
    SAME_TASK_JACCARD,
    PoolQuestions,
    diversify,
    fit_examples,
    fold_question,
)
from ja_instruct.retrieval.ranking import Result
from ja_instruct.text import jaccard, ngram_set

TEXTS = st.text("日本の首都はどこ富士山", max_size=12)


class TestSameTask:
    @pytest.mark.parametrize(
        "other",
        [
            "日本で一番高い山は何ですか。",
            " 日本で一番高い山は、何ですか？\n",
            "日本で一番　高い山は何ですか",
            "日本で一番高い山は何ですかね。",
            "「日本で一番高い山は何ですか」",
        ],
    )
    def test_the_same_in_other_writing(self, other):
        pool = PoolQuestions(["川は?", other, "日本で一番長い川は何ですか。"])
        assert pool.positions_of("日本で一番高い山は何ですか?") == {1}

    def test_width_and_case_do_not_matter(self):
        assert PoolQuestions(["ＧＰＵとは何か", "ｶﾞﾗｽ"]).positions_of("gpuとは何か？") == {0}
        assert PoolQuestions(["ＧＰＵとは何か", "ｶﾞﾗｽ"]).positions_of("ガラス") == {1}

    @pytest.mark.parametrize(
        ("task", "other"),
        [
            ("秋田県の県庁所在地はどこですか。", "青森県の県庁所在地はどこですか。"),
            ("日本で一番高い山は何ですか。", "日本で一番長い川は何ですか。"),
            ("春", "夏"),
            ("", "春"),
        ],
    )
    def test_another_task_with_the_same_template(self, task, other):
        assert PoolQuestions([other]).positions_of(task) == set()

    def test_one_character_in_a_long_question(self):
        """Five 5-grams differ on each side, so 50 characters are on this side of the threshold."""
        long = "".join(chr(0x4E00 + i) for i in range(60))
        changed = long[:30] + "あ" + long[31:]
        assert PoolQuestions([long]).positions_of(changed) == {0}
        assert PoolQuestions([long[10:45]]).positions_of(changed[10:45]) == set()

    @given(st.lists(TEXTS, max_size=8), TEXTS)
    @example(["", "。"], "")
    def test_slow_reference(self, questions, task):
        def grams(text):
            text = fold_question(text)
            return {text} if len(text) < 5 else {text[i : i + 5] for i in range(len(text) - 4)}

        slow = {
            i
            for i, question in enumerate(questions)
            if len(grams(question) & grams(task)) / len(grams(question) | grams(task)) >= 0.8
        }
        assert SAME_TASK_JACCARD == 0.8
        assert PoolQuestions(questions).positions_of(task) == slow


def diversify_slowly(results, questions, count, diversity):
    """Maximal marginal relevance as its definition says it."""
    scores = [result.score for result in results]
    span = max(scores) - min(scores)
    chosen = []
    while len(chosen) < min(count, len(results)):

        def marginal(i):
            relevance = (scores[i] - min(scores)) / span if span else 1.0
            redundancy = max(
                (
                    jaccard(*(ngram_set(fold_question(questions[k]), 2) for k in (i, j)))
                    for j in chosen
                ),
                default=0.0,
            )
            return (1 - diversity) * relevance - diversity * redundancy

        rest = [i for i in range(len(results)) if i not in chosen]
        chosen.append(max(rest, key=marginal) if chosen else rest[0])
    return [results[i] for i in sorted(chosen)]


class TestDiversify:
    @given(
        st.lists(st.tuples(TEXTS, st.integers(0, 9)), min_size=1, max_size=8),
        st.integers(1, 9),
        st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    )
    def test_slow_reference(self, pool, count, diversity):
        questions = [text for text, _ in pool]
        scores = sorted((score for _, score in pool), reverse=True)
        results = [Result(i, float(score)) for i, score in enumerate(scores)]
        chosen = diversify(results, questions, count, diversity)
        assert chosen == diversify_slowly(results, questions, count, diversity)
        assert chosen == sorted(chosen, key=results.index)

    @pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
    def test_near_copies_are_not_chosen_at_any_scale_of_the_scores(self, scale):
        questions = ["日本の首都は?", "日本の首都は。", "日本の首都はね", "春の七草は?"]
        results = [Result(i, scale * (9 - i)) for i in range(4)]
        assert [result.position for result in diversify(results, questions, 2, 0.0)] == [0, 1]
        assert [result.position for result in diversify(results, questions, 2, 0.6)] == [0, 3]

    def test_nothing_found(self):
        assert diversify([], [], 3, 0.5) == []


@pytest.mark.parametrize(
    ("room", "expected"), [(None, "abc"), (9, "abc"), (5, "abc"), (4, "bc"), (2, ""), (1, "")]
)
def test_least_similar_examples_are_dropped_first(room, expected):
    shots, prompt, tokens = fit_examples(
        [{"input": one} for one in "abc"],
        lambda some: "".join(shot["input"] for shot in some) + "課題",
        len,
        room,
    )
    assert "".join(shot["input"] for shot in shots) == expected
    assert prompt == f"{expected}課題"
    assert tokens == len(prompt)
