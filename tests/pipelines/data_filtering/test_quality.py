"""What each rule for single texts finds, and what it must accept."""

import re
import time
from collections.abc import Callable

import pytest
from filter_pairs import first_turn, read_real_conversations
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering import quality
from ja_instruct.pipelines.data_filtering.quality import (
    find_citation_mark,
    find_cut_off,
    find_kana_gap,
    find_repetition,
)

PROSE = "今日はとても良い天気です。"
FILLER = "".join(
    f"{number}番目の話は、{chr(0x3042 + number % 80)}で始まる。" for number in range(90)
)
JAPANESE = st.text("あいがをアー東京都、。\n 1a", max_size=120)


ACCEPTED = {
    find_citation_mark: [
        "",
        "日本の首都は東京です。",
        "リスト [1, 2, 3] の最初は items[0] です。",
        "a[1]、b[2]",
        "区間[0,1]と[2]の和を求める。",
        "x = arr[1]\ny = dp[i][j]",
        "```python\nprint('開始した[3]。')\n```",
        "値は `開始した[3]。` です。",
        "閉じない```\n開始した[3]。",
        "空欄[1]に入る語は何ですか。",
        "日本の首都は[1]です。",
        "次の中から選びなさい。\n[1] 東京\n[2] 大阪",
        "正解は[3]です。理由は図[2]。",
        "[公式サイト](https://example.jp)と[3](https://example.jp)を見てください。",
        "効果があるとされる[1]。\n\n参考文献\n[1] 山田（2020）",
        "[あなたの名前]様、よろしくお願いします。",
        "発音は[e]です。",
        "[2017]年の作品。",
    ],
    find_cut_off: [
        "",
        " \n",
        "東京",
        "42",
        "2.",
        "はい、そうです",
        "リックの",
        "東から西へ",
        "リンゴ、ミカン、バナナ",
        "- 水\n- 食料\n- ナイフ",
        "1. チェルシー（イギリス）\n2. レアル（スペイン）",
        "1) 水\n2) 食料",
        "太陽光発電、新技術でより長持ちに",
        "すべてデンバー都市圏内に位置している",
        "彼は「行こう。」と言った",
        "それでは、またお会いしましょう！",
        "次の関数です。\n```python\nx = [1,\n     2]\n```",
        "| 県 | 市 |\n| --- | --- |\n| 宮城 | 仙台 |",
        "半開区間は (0, 1]",
        "やったね :(",
        "y = f(g(x",
        "以上です。\n\n---",
        "赤と黄でオレンジ、" * 3 + "青と赤で紫",
        "よろしくお願いします\n田中",
    ],
    find_repetition: [
        "",
        PROSE,
        FILLER,
        "犬：動物\nバラ：植物\n猫：動物\n松：植物\n馬：動物\n菊：植物\n牛：動物",
        "「完璧」「完璧じゃない」" * 8,
        "-" * 300,
        "__________" * 30,
        "| 0 | 0 |\n" * 30 + "以上です。",
        "```python\n" + "    合計 = 合計 + 数値の一覧の中の値\n" * 40 + "```\n以上です。",
        "春が来た\n山に来た\n里に来た\n野にも来た\n" * 2 + "花が咲く\n鳥が鳴く",
        "".join(f'"type": "string", "name": "item{n}",\n' for n in range(30)),
    ],
    find_kana_gap: [
        "",
        "東京都",
        "日本の首都は東京です。",
        "北海道、青森県、岩手県、宮城県、秋田県、山形県、福島県、茨城県、栃木県、群馬県",
        "北海道,札幌市\n青森県,青森市\n岩手県,盛岡市\n宮城県,仙台市\n秋田県,秋田市",
        "第二種中高層住居専用地域、独立行政法人農林水産消費安全技術センター",
        "労働組合法（昭和二十四年法律第百七十四号）第二十四条第一項本文",
        "東京都千代田区神田小川町1丁目2番3号 田中建物三階 株式会社山田商店営業部",
        "中国語では为什么と言います。",
        "What is this? " * 20,
    ],
}


@pytest.mark.parametrize(
    ("find", "text"), [(find, text) for find, texts in ACCEPTED.items() for text in texts]
)
def test_good_texts_are_accepted(find: Callable[[str], str | None], text: str) -> None:
    assert find(text) is None


FOUND = {
    find_citation_mark: [
        ("同社は2000年に運航を開始した[3]。", "[3]"),
        ("同社は2000年に運航を開始した［３］。", "［３］"),
        ("同社は運航を開始した。[12] 翌年には増便した。", "[12]"),
        ("同社は運航を開始した[1][2]翌年には増便した。", "[1]"),
        ("同社（VA社）[1]は、航空会社である。", "[1]"),
        ("最大の航空会社であり[5]、機材も多い。", "[5]"),
        ("運航を開始した [2]", "[2]"),
        ("通称インドネシア[a]、東南アジアの国である。", "[a]"),
        ("真珠湾攻撃[nb 3]は、1941年に起きた。", "[nb 3]"),
        ("恐竜の[注釈 1]多様な群である。", "[注釈 1]"),
        ("彼の作品とされる[要出典]絵。", "[要出典]"),
        ("解散した[citation needed]このバンド。", "[citation needed]"),
        ("言葉の使い方[編集]という節。", "[編集]"),
        ("最も高い山です【4】[4†source]。", "[4†source]"),
        ("items[0]を使う。根拠は論文にある[2]。", "[2]"),
    ],
    find_repetition: [
        ("散歩に行きます。" + PROSE * 4, "今日はとても良い天気です ×4"),
        (
            "私の考えは、良い天気の日に散歩に行くこと\n" * 3,
            "私の考えは、良い天気の日に散歩に行くこと ×3",
        ),
        ("はい" * 60, "はい ×60"),
        ("答えは" + "6" * 300, "6 ×300"),
        ("評価：" + "1, 5, 3, " * 40, "1, 5, 3, ×39"),
        (
            "".join(f"{n}. 会議室での打ち合わせの準備\n" for n in range(40)),
            "での打ち合わせの準備 ×40",
        ),
    ],
    find_kana_gap: [
        (
            "影は西側です。因为太阳在东边升起，其光线从西向东照射。",
            "因为太阳在东边升起，其光线从西向东照射。",
        ),
        (
            "因為太陽在東邊升起，所以樹的影子會落在它的西邊，而不是東邊",
            "因為太陽在東邊升起，所以樹的影子會落在它的西邊，而不是東邊",
        ),
    ],
}


@pytest.mark.parametrize(
    ("find", "text", "matched"),
    [(find, *found) for find, texts in FOUND.items() for found in texts],
)
def test_bad_texts_are_found(find: Callable[[str], str | None], text: str, matched: str) -> None:
    assert find(text) == matched


@pytest.mark.parametrize(
    ("response", "end"),
    [
        ("三女の名前は「アリス", "三女の名前は「アリス"),
        ("1. チェルシー（イギリス）\n2. レアル（スペイン", "2. レアル（スペイン"),
        ("水、食料、ナイフ、救急箱、ライターまたはマッチ、 \n", "ライターまたはマッチ、"),
        ("北京ダックといえば、ネギと豆板醤が定番ですが", "定番ですが"),
        ("1981年から1991年の退任までの10年間は", "10年間は"),
        ("ローソンは、日本のコンビニエンスストアで", "コンビニエンスストアで"),
        ("申請は承認されました。そして2019年7月29日に", "7月29日に"),
        ("準備するものは次の通りです。\n1. 水\n2. 食料\n3.", "3."),
        ("次の関数です。\n```python\ndef f():\n    return", "return"),
        (FILLER * 2 + "通りには、高級ブランドのショ", "ショ"),
        (FILLER * 2 + "\n* 建設現場の事務所の", "事務所の"),
    ],
)
def test_cut_off_answers_are_found(response: str, end: str) -> None:
    found = find_cut_off(response)
    assert found is not None
    assert found.endswith(end)
    assert len(found) <= quality.SHOWN_CHARS


def test_repetition_limits_are_inclusive() -> None:
    text = PROSE * 2 + "あ" * 14
    share = 100 * 12 / len(text)
    assert share == 30
    assert find_repetition(text) is None
    assert find_repetition(text, sentence_percent_max=29) == "今日はとても良い天気です ×2"
    ngrams = "".join(f"{PROSE}{chr(0x4E00 + 16 * n)}" for n in range(30)).replace("。", "")
    assert find_repetition(ngrams) is not None
    assert find_repetition(ngrams, ngram_percent_max=95) is None
    assert find_repetition(ngrams, ngram_letters_min=len(ngrams) + 1) is None


def reference_repeated(text: str, size: int) -> int:
    covered = [False] * len(text)
    for start in range(len(text) - size + 1):
        if any(text[i : i + size] == text[start : start + size] for i in range(start)):
            covered[start : start + size] = [True] * size
    return sum(covered)


@given(
    st.text("あい", min_size=30, max_size=80) | st.text("あいうえ東京", min_size=30, max_size=80),
    st.integers(0, 100),
)
def test_repeated_ngrams_match_a_slow_reference(text: str, percent: int) -> None:
    found = find_repetition(
        text, sentence_percent_max=100, ngram_percent_max=percent, ngram_letters_min=20
    )
    expected = reference_repeated(text, quality.NGRAM_CHARS) * 100 > percent * len(text)
    assert (found is not None) == expected


def reference_gap(text: str, han_max: int, foreign_max: int) -> bool:
    """Check ``text`` character by character."""
    han: list[str] = []
    for position, character in enumerate(text + "\n"):
        if is_han(character):
            han.append(character)
            foreign = sum(not one.encode("cp932", "ignore") for one in han)
            if len(han) > han_max or (len(han) > foreign_max and foreign >= 2):
                return True
        # one punctuation mark of a Chinese clause may follow a Han character
        elif not (character in "，。；：？！“”" and position and is_han(text[position - 1])):
            han.clear()
    return False


def is_han(character: str) -> bool:
    return re.match(f"[{quality._HAN}]", character) is not None


@given(st.text("東京都为这，。、の", max_size=60), st.integers(3, 12), st.integers(3, 12))
def test_kana_gap_matches_a_slow_reference(text: str, han_max: int, foreign_max: int) -> None:
    found = find_kana_gap(text, han_chars_max=han_max, foreign_chars_max=foreign_max)
    assert (found is not None) == reference_gap(text, han_max, foreign_max)


@given(st.text(max_size=60) | JAPANESE)
def test_every_rule_accepts_any_text(text: str) -> None:
    for find in ACCEPTED:
        assert find(text) is None or find(text)


@pytest.mark.parametrize(
    "text",
    ["は、" * 50_000, "「" * 50_000 + ")" * 50_000, "[1]" * 50_000, "為" * 12 + "、" * 50_000],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    started = time.process_time()
    find_cut_off(text + "で")
    find_citation_mark(text)
    find_kana_gap(text)
    find_repetition(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("find", "fields", "expected"),
    [
        (find_citation_mark, ("user", "assistant"), 1648),
        (find_cut_off, ("assistant",), 101),
        (find_repetition, ("user", "assistant"), 55),
        (find_kana_gap, ("user", "assistant"), 48),
    ],
)
def test_rejects_of_the_judged_data(
    find: Callable[[str], str | None], fields: tuple[str, ...], expected: int
) -> None:
    """The documented precision was judged on these rejects: judge again when a rule changes."""
    rows = read_real_conversations()
    texts = [first_turn(row, field) for row in rows for field in fields]
    assert sum(find(text) is not None for text in texts) == expected
