import json

import pytest
from pydantic import ValidationError

from ja_instruct.prompts import PromptParameters, few_shot_prompt, training_prompt

QUESTION = "波括弧{}と{input}を含む「質問」\u2028改行\nはどうなりますか。"
SHOTS = [
    {"input": "一番遠い質問", "output": "一番遠い回答", "score": 1.0},
    {"input": "次に遠い\n質問", "output": "{output}\n- 箇条書き", "score": 2.0},
    {"input": "一番近い質問", "output": "一番近い回答", "score": 3.0},
]


@pytest.fixture(scope="module")
def prompts(read_parameters):
    return PromptParameters(**read_parameters("base")["prompts"])


@pytest.fixture(scope="module")
def texts(recipe):
    return json.loads((recipe / "prompts.json").read_text("utf-8"))


def test_training_prompt_is_the_recipes_up_to_the_answer(prompts, texts):
    whole = texts["train_prompt"].format(QUESTION, "答え")
    assert training_prompt(prompts, QUESTION) + "答え" == whole


def test_few_shot_prompt_is_the_recipes(prompts, texts):
    expected = texts["few_shot_header"]
    for shot in SHOTS:
        expected += texts["few_shot_example"].format(input=shot["input"], output=shot["output"])
    expected += texts["task_prompt"].format(input=QUESTION)
    assert few_shot_prompt(prompts, QUESTION, SHOTS).encode() == expected.encode()


def test_few_shot_prompt_in_full(prompts):
    assert few_shot_prompt(prompts, "日本の首都は?", SHOTS[2:]) == (
        "質問・文章をよく読んで、正確で親切な回答を書きなさい。\n"
        "### 質問:\n一番近い質問\n\n### 回答:\n一番近い回答\n\n\n"
        "あなたは日本語が堪能な優秀な人間です。\n"
        "**文脈**を踏まえて、改行と箇条書きを駆使して、日本語で**詳細に**書きなさい。\n"
        "優秀な人間になりきって、推測をいれずに根拠をもってわかりやすく答えてください。"
        "### 質問:\n日本の首都は?\n\n### 回答:\n"
    )


def test_training_prompt_in_full(prompts):
    assert training_prompt(prompts, "日本の首都は?") == (
        "\nあなたは高性能なAIです。質問に対して、適切な回答を書きなさい。\n"
        "回答に関係のないことは絶対に書かないでください。\n"
        "\n### 質問:\n日本の首都は?\n\n### 回答:\n"
    )


def test_shots_keep_the_order_given(prompts):
    prompt = few_shot_prompt(prompts, QUESTION, SHOTS)
    places = [prompt.index(shot["input"]) for shot in SHOTS]
    assert places == sorted(places)
    assert prompt.index(QUESTION) > places[-1]


def test_without_shots_header_and_task_remain(prompts, texts):
    expected = texts["few_shot_header"] + texts["task_prompt"].format(input=QUESTION)
    assert few_shot_prompt(prompts, QUESTION, []) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_prompt", "質問:{}", "must hold {} twice"),
        ("train_prompt", "{}と{}、以上", "the second at its end"),
        ("task_prompt", "質問:", "must hold {input}"),
        ("few_shot_example", "{output}", "must hold {input}"),
    ],
)
def test_texts_without_their_places_are_refused(prompts, name, text, message):
    with pytest.raises(ValidationError, match=message):
        PromptParameters(**{**prompts.model_dump(), name: text})
