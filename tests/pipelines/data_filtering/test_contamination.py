"""Contaminated texts, against a straightforward reference."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.contamination import (
    SHORT_NGRAM_CHARS,
    SHORT_NGRAMS_MIN,
    ContaminationIndex,
)
from ja_instruct.text import letters_and_digits

DATA = Path(__file__).parents[4] / "shared" / "data"

BEAR = "クマが海辺でアザラシと友達になり、最後は家に帰るという筋の短編小説を書いてください。"
LIST = "新年の抱負をリストアップしてください。"
SHRINE = "伊勢神宮は何県？"
PHRASE = "次の文章を注意深く読んでから、そのあとに続く質問に日本語で答えてください。"


def make_index(*inputs: str, output: str | None = None, **figures: Any) -> ContaminationIndex:
    tasks = [
        {"task_id": number, "input": text, "output": output} for number, text in enumerate(inputs)
    ]
    defaults = {"ngram_chars": 25, "share_min": 0.5, "stock_texts_max": 5}
    return ContaminationIndex(tasks, **(defaults | figures))


def is_contaminated_slowly(task: str, text: str, corpus: list[str], others: list[str]) -> bool:
    """Check for one task, n-gram by n-gram."""

    def grams(length: int) -> set[str]:
        letters = letters_and_digits(task)
        return {letters[i : i + length] for i in range(len(letters) - length + 1)}

    def count(gram: str) -> int:
        return sum(gram in letters_and_digits(other) for other in corpus)

    letters = letters_and_digits(text)
    for gram in grams(10):
        shared = any(gram in letters_and_digits(other) for other in others)
        if gram in letters and not shared and count(gram) <= 2:
            return True
    short = grams(SHORT_NGRAM_CHARS)
    found = {gram for gram in short if gram in letters}
    weights = {gram: min(1.0, 2 / max(count(gram), 1)) for gram in short}
    enough = bool(found) and len(found) >= min(len(short), SHORT_NGRAMS_MIN)
    # sorted, because rounding depends on the order
    weight_found, weight_all = (
        sum(map(weights.__getitem__, sorted(part))) for part in (found, short)
    )
    return enough and weight_found >= 0.5 * weight_all - 1e-9


PIECES = st.lists(st.sampled_from([*"東京は大きな都市です。ア", "12"]), max_size=20)
TEXTS = PIECES.map("".join)


@given(
    st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.lists(TEXTS, max_size=6), st.integers(0, 20)
)
def test_matches_a_slow_reference(
    inputs: list[str], tail: str, corpus: list[str], cut: int
) -> None:
    text = inputs[0][:cut] + tail
    index = make_index(*inputs, ngram_chars=10, stock_texts_max=2)
    index.count_stock_phrases(corpus)
    expected = [
        is_contaminated_slowly(task, text, corpus, inputs[:place] + inputs[place + 1 :])
        for place, task in enumerate(inputs)
    ]
    match = index.find(text)
    assert (match is not None) == any(expected)
    if match is not None:
        assert expected[match.task_id]
        assert match.matched in letters_and_digits(text)
        assert match.matched in letters_and_digits(inputs[match.task_id])


@pytest.mark.parametrize(
    "text",
    [
        BEAR,
        f"宿題が出ました。\n「{BEAR}」\nどうしたらいいですか。",
        "クマが海辺で　アザラシと友達になり\n最後は家に帰る、という筋の短編小説を考えた。",
        BEAR.replace("アザラシ", "ペンギン").replace("短編", "長編"),
        BEAR.replace("海辺", "浜辺").replace("最後は", "最後には").replace("小説", "物語"),
    ],
)
def test_a_copied_task_is_found(text: str) -> None:
    match = make_index(LIST, BEAR).find(text)
    assert match is not None
    assert match.task_id == 1


@pytest.mark.parametrize(
    "text",
    ["", "。、！", "短編小説を書いてください。", "クマが出たので家に帰る。", "伊勢神宮は遠い。"],
)
def test_other_texts_are_accepted(text: str) -> None:
    assert make_index(LIST, BEAR, SHRINE).find(text) is None


def test_a_short_task_must_be_contained_as_a_whole() -> None:
    index = make_index(SHRINE)
    assert index.find("伊勢神宮は何年に建てられましたか。") is None
    match = index.find("では、伊勢神宮は何県ですか。")
    assert match is not None
    assert match.matched == "伊勢神宮は何県"


def test_a_stock_phrase_of_the_corpus_is_ignored() -> None:
    index = make_index(LIST)
    request = "観光名所をリストアップしてください。"
    assert index.find(request) is not None
    index.count_stock_phrases([request] * 5)
    assert index.find(request) is not None
    index.count_stock_phrases(f"{place}の名物をリストアップしてください。" for place in range(50))
    assert index.find(request) is None
    assert index.find(LIST) is not None


def test_a_long_stock_phrase_of_the_corpus_is_ignored() -> None:
    body = "首都であり最大の都市でもある東京は、関東平野の南に開けている。" * 2
    index = make_index(PHRASE + body)
    index.count_stock_phrases([PHRASE] * 5)
    assert index.find(PHRASE) is not None
    index.count_stock_phrases([PHRASE])
    assert index.find(PHRASE) is None


def test_a_phrase_of_several_tasks_is_ignored() -> None:
    bodies = [
        "関東平野の南に開けている東京は、江戸と呼ばれた昔から人の集まる都であり、今も首都である。",
        "鴨川の流れる京都は、平安遷都より千年のあいだ帝の住まう都であり、寺と庭とで知られている。",
    ]
    assert make_index(PHRASE + bodies[0]).find(PHRASE) is not None
    assert make_index(*(PHRASE + body for body in bodies)).find(PHRASE) is None


def test_a_task_copied_many_times_is_found() -> None:
    index = make_index(BEAR)
    index.count_stock_phrases([BEAR] * 1000)
    assert index.find(BEAR) is not None


def test_long_reference_outputs_are_indexed() -> None:
    answer = "海辺に向かったクマは、そこでアザラシと出会い、魚の捕り方を教わりました。"
    assert make_index(BEAR, output=answer).find(f"答え：{answer}") is not None
    assert make_index(BEAR, output="三重県にあります。").find("三重県にあります。") is None


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "'evaluation_tasks' has no tasks"),
        ([{"input": BEAR}], "record 1 has no 'task_id'"),
        ([{"task_id": 1, "input": BEAR}, {"task_id": 2}], "record 2 .task_id 2.: 'input'"),
        ([{"task_id": "a", "input": BEAR, "output": 3}], "record 1 .task_id 'a'.: .*'output'"),
    ],
)
def test_refused_tasks(tasks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ContaminationIndex(tasks, ngram_chars=25, share_min=0.5, stock_texts_max=5)


def edit(text: str, edits: int, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(edits):
        place = rng.randrange(len(letters))
        letters[place : place + rng.randrange(2)] = rng.choice(["", "の", "新"])
    return "".join(letters)


def test_planted_evaluation_tasks_are_found() -> None:
    file = DATA / "elyza_tasks_100" / "tasks.jsonl"
    if not file.exists():
        pytest.skip(f"the evaluation tasks are not at {file}")
    tasks = [json.loads(line) for line in file.open(encoding="utf-8")]
    index = ContaminationIndex(tasks, ngram_chars=25, share_min=0.5, stock_texts_max=5)
    rng = random.Random(0)
    for edits_per_char, least in ((0, 100), (0.02, 95), (0.05, 95)):
        planted = [
            edit(task["input"], round(edits_per_char * len(task["input"])), rng) for task in tasks
        ]
        matches = [index.find(f"質問です。{text}お願いします。") for text in planted]
        right = [
            match is not None and match.task_id == task["task_id"]
            for match, task in zip(matches, tasks, strict=True)
        ]
        assert sum(right) >= least
