"""Rules beyond the recipe for a single text: citation marks, cut-off ends, repetition, Chinese.

Each ``find_`` function checks one text, after the replacements, and returns the violating part,
short enough for a report, or ``None``.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from ja_instruct.text import split_ngrams

#: Most characters shown of a match.
SHOWN_CHARS = 40
#: Length of the character n-grams by which repetition is measured.
NGRAM_CHARS = 10
#: A loop: the last n-gram occurs at least 12 times in the last 240 characters.
_LOOP_COUNT, _LOOP_CHARS = 12, 240

_KANA = "ぁ-ゖァ-ヺー"
_HAN = "㐀-䶿一-鿿豈-﫿々〆"
_NOT_JAPANESE = re.compile(f"[^{_KANA}{_HAN}]+")
_HAN_RUNS = re.compile(f"[{_HAN}]+")

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_BRACKETED = re.compile(r"[\[［][ 　]?([^\[\]［］\n]{1,40})[ 　]?[\]］](?!\()")
_CITATION_LABEL = re.compile(
    r"(?:注釈?|註|脚注|出典|note|nb|n\.?|web|jp|fn|ref)[ 　]\d{1,3}|(?:注釈?|註|脚注)\d{1,3}"
    r"|note [a-z]|要(?:出典|検証|追加記述|ページ|説明|文献特定).{0,8}|出典(?:無効|不明|が?必要)"
    r"|引用(?:者|元|文献)[^\d]{0,6}|検証失敗|完全引用|非一次(?:資料|ソース).{0,4}|リンク切れ|独自研究.?"
    r"|より[良よ]い(?:ソース|情報源|出典)が?必要|(?:いつ|誰|どこ|誰によって)[?？]|編集"
    r"|.{0,30}(?:citation|source|clarification|verification|quotation|page) needed\??"
    r"|(?:when|who|which|where|by whom|according to whom)\?|dubious.*|.*dead link"
    r"|un?reliable source\??|non-primary source.*|\d{1,2}†.{0,20}|\^\d{1,3}",
    re.IGNORECASE,
)
_CITATION_NUMBER = re.compile(r"[0-9０-９]{1,3}|[a-z]")
# A citation follows the end of a sentence, a clause or a name. In 正解は[3]です and 空欄の[2] the
# number itself is the subject; after ASCII it is an index (items[0]).
_BEFORE_NUMBER = re.compile(
    rf"(?:[。．！？」』”）)％%；;、，,：]|[{_KANA}{_HAN}](?<![はのを])"
    r"(?<!空欄)(?<!選択肢)(?<!文献)(?<!番号)(?<!手順)(?<![図表式問題項列])) ?$"
)
_AFTER_NUMBER = re.compile(r"[ 　]?(?:[\[［。．、，）」』;；]|[.,](?!\w)|$)", re.MULTILINE)
_BEHIND_SENTENCE = re.compile(r"[。．！？] ?$|[るたすいだん] ?$")
_BEHIND_NAME = re.compile(r"[」』”）);；,] ?$")
_TEXT_GOES_ON = re.compile(rf" ?[{_KANA}{_HAN}A-Z0-9「『（(]")

# A long answer that ends with a noun or a particle was cut off by a token limit; a short one may be
# a headline, a list item or an elliptical sentence.
_LONG_CHARS = 1000
# A shorter text may be a label, a name or a headline, which have no regular end.
_SENTENCE_CHARS = 20
_OPENERS = "「『（(【［[〈《“"
_CLOSERS = {"「": "」", "『": "』", "【": "】", "〈": "〉", "《": "》", "“": "”"} | dict.fromkeys(
    "（(［[", "）)］]"
)
# words in an open bracket: not an emoticon, nor a sentence that has ended
_NAME_OR_WORDS = re.compile(rf"[^。．！？!?]*[{_KANA}{_HAN}A-Za-z][^。．！？!?]*")
_PREDICATE_END = re.compile("(?:です|ます|ません|した|った|いる|ある|ない)$")
_ENDS = frozenset("。．.！？!?…)）］]｝}」』】》\"”'*`")
_FENCE = re.compile("^ *```", re.MULTILINE)
_DANGLING = re.compile(
    rf"[、，,・]$|[{_OPENERS}]$"
    r"|(?:です|ます|した|った|いる|ある|ない)が$"
    rf"|[一-鿿ァ-ヺーA-Za-z0-9」』）)](?:[をは]|が)$|は、[^。\n]*[一-鿿ァ-ヺー]で$"
    r"|(?:であり|および|または|かつ|しかし|例えば|たとえば|ならびに|もしくは|に対して|について|において)$"
    r"|[0-9][年月日時]に$|[。！？] *[ぁ-ん]{1,2}$"
)
_UNFINISHED = re.compile(r"[。！？][^。！？\n]*[一-鿿ァ-ヺー]$|[のにとでもや]$")
_LIST_MARKER = re.compile(r"[ 　]*(?:[-*・•+]|[0-9０-９]+[.)．）、]|\([0-9]+\)|#+)[ 　]*")

_SENTENCE_ENDS = re.compile(r"([。！？!?\n])")
_HIRAGANA = re.compile("[ぁ-ゖ]")


def find_citation_mark(text: str) -> str | None:
    """Find a citation mark without its reference list.

    Marks are numbers (``[3]``, ``［３］``, ``[1][2]``), letters (``[a]``), and the labels of an
    encyclopedia (``[要出典]``, ``[note 1]``, ``[citation needed]``). A number or letter counts only
    after a sentence, a clause or a name; not as an index, a blank or an option, and not if a line
    of the text begins with it, as in a list of references. Code is ignored.

    >>> find_citation_mark("配列 [1, 2, 3] の items[0] は 1 です。正解は[3]です。")
    >>> find_citation_mark("同社は2000年に運航を開始した[3][4]。翌年には増便した。")
    '[3]'
    """
    if "[" not in text and "［" not in text:
        return None
    if "`" in text:
        text = _CODE.sub("`", text)
    for bracketed in _BRACKETED.finditer(text):
        mark = bracketed[1]
        if _CITATION_NUMBER.fullmatch(mark):
            if _is_cited(text, *bracketed.span()) and not _is_explained(text, mark):
                return bracketed[0]
        elif _CITATION_LABEL.fullmatch(mark):
            return bracketed[0]
    return None


def _is_cited(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 5) : start]
    if not _BEFORE_NUMBER.search(before):
        return False
    if _AFTER_NUMBER.match(text, end):
        return True
    if not _TEXT_GOES_ON.match(text, end):
        return False
    particle = text[end : end + 1] in "はがをにのとでもへや"
    return bool(_BEHIND_NAME.search(before) or (_BEHIND_SENTENCE.search(before) and not particle))


def _is_explained(text: str, mark: str) -> bool:
    return re.search(rf"^[ 　]*[\[［]{re.escape(mark)}[\]］] *\S", text, re.MULTILINE) is not None


def find_cut_off(response: str) -> str | None:
    """Find an answer that breaks off, and return its end.

    Such an answer ends within a code block or within a bracket opened in its last line; with a
    comma, a conjunction, a particle after a noun or an empty list item; or, from 1,000 characters
    on, in the middle of a sentence. An end without 。 is not enough: names, lists, headlines and
    some sentences end so.

    >>> find_cut_off("リンゴ、ミカン、バナナ")
    >>> find_cut_off("ローソンは、日本のコンビニエンスストアで")
    'ローソンは、日本のコンビニエンスストアで'
    """
    text = response.rstrip()
    lines = text.rsplit("\n", 1)
    # the last words are enough, however long the line
    last = lines[-1][-_LONG_CHARS:]
    if len(lines) > 1 and _LIST_MARKER.fullmatch(last):
        return last[-SHOWN_CHARS:]
    if not text or text[-1] in _ENDS:
        return None
    is_cut = (
        _opens_bracket(last)
        or ("```" in text and len(_FENCE.findall(text)) % 2)
        or (len(text) >= _SENTENCE_CHARS and _DANGLING.search(last))
        or (len(text) >= _LONG_CHARS and _UNFINISHED.search(last))
    )
    return last[-SHOWN_CHARS:] if is_cut else None


def _opens_bracket(line: str) -> bool:
    """Return whether a bracket is left open and no sentence has ended inside it."""
    opened: list[tuple[str, int]] = []
    for place, character in enumerate(line):
        if character in _CLOSERS:
            opened.append((_CLOSERS[character], place + 1))
        else:
            for number in range(len(opened) - 1, -1, -1):
                if character in opened[number][0]:
                    del opened[number:]
                    break
    # formulas may have unbalanced brackets
    if not opened or re.search(r"[=^\\]", line):
        return False
    inside = line[opened[0][1] :]
    return bool(_NAME_OR_WORDS.fullmatch(inside)) and not _PREDICATE_END.search(inside)


def find_repetition(
    text: str,
    *,
    sentence_percent_max: int = 30,
    ngram_percent_max: int = 60,
    ngram_letters_min: int = 300,
) -> str | None:
    r"""Find degenerate repetition: the repeated text and its count.

    Three measures, after the repetition filters of Gopher (Rae et al. 2021, arXiv:2112.11446, table
    A1) as implemented in DataTrove, adapted to Japanese, which has no spaces and shorter lines:

    - the share of the text in sentences that occur earlier in it (Gopher's duplicate lines, with
      limits of 20 to 30 %). A sentence has at least 10 characters, hiragana, and an end or 20
      characters, which excludes list items, labels and refrains of songs, all of which may repeat;
    - the share of its Japanese letters in 10-grams that occur earlier in it (Gopher's duplicate
      n-grams of 5 to 10 words), from ``ngram_letters_min`` letters on, since shorter answers that
      classify things are repetitive by nature. Code, numbers, symbols and Latin do not count;
    - whether the last 10 characters occur 12 times in the last 240: a model in a loop does not
      leave it before the answer is cut off. Lines of symbols (``----``) do not count.

    >>> find_repetition("犬：動物\nバラ：植物\n猫：動物\n松：植物\n馬：動物")
    >>> find_repetition("散歩に行きます。" + "今日はとても良い天気です。" * 4)
    '今日はとても良い天気です ×4'
    >>> find_repetition("激しい腹痛の原因は" + "胆石症、" * 40)
    '胆石症、 ×40'
    """
    unit = _find_loop(text.rstrip()[-_LOOP_CHARS:])
    if unit is not None:
        return _show(unit, text.count(unit))
    sentences = _count_sentences(text)
    repeated = sum(len(sentence) * (count - 1) for sentence, count in sentences.items())
    if repeated * 100 > sentence_percent_max * len(text):
        return _show(*sentences.most_common(1)[0])
    if len(text) >= ngram_letters_min:
        letters = _NOT_JAPANESE.sub("", _CODE.sub("", text) if "`" in text else text)
        if len(letters) >= ngram_letters_min:
            ngrams = split_ngrams(letters, NGRAM_CHARS)
            most = ngram_percent_max * len(letters)
            # a quick upper bound, which holds even if no repeated n-grams overlap, suffices for
            # most
            repeated_most = NGRAM_CHARS * (len(ngrams) - len(set(ngrams)))
            if repeated_most * 100 > most and _count_repeated_letters(ngrams) * 100 > most:
                return _show(*Counter(ngrams).most_common(1)[0])
    return None


def _find_loop(tail: str) -> str | None:
    ngram = tail[-NGRAM_CHARS:]
    if tail.count(ngram) < _LOOP_COUNT or not re.search(r"[^\W_ー]", ngram):
        return None
    unit = tail[tail.rfind(ngram, 0, -1) + len(ngram) :]
    # the unit may contain what changes from turn to turn, such as the numbers of list items
    return unit if tail.count(unit) >= _LOOP_COUNT else ngram


def _count_sentences(text: str) -> Counter[str]:
    parts = _SENTENCE_ENDS.split(text)
    sentences: Counter[str] = Counter()
    for part, end in zip(parts[::2], [*parts[1::2], "\n"], strict=True):
        if len(part) < 10:
            continue
        sentence = part.strip(" 　-*・0123456789.")
        if len(sentence) >= (20 if end == "\n" else 10) and _HIRAGANA.search(sentence):
            sentences[sentence] += 1
    return sentences


def _count_repeated_letters(ngrams: list[str]) -> int:
    """Return the number of letters in n-grams that occur earlier."""
    seen: set[str] = set()
    covered_to = repeated = 0
    for start, ngram in enumerate(ngrams):
        if ngram in seen:
            repeated += min(NGRAM_CHARS, start + NGRAM_CHARS - covered_to)
            covered_to = start + NGRAM_CHARS
        else:
            seen.add(ngram)
    return repeated


def _show(text: str, count: int) -> str:
    return f"{' '.join(text[:SHOWN_CHARS].split())} ×{count}"


def find_kana_gap(text: str, *, han_chars_max: int = 20, foreign_chars_max: int = 12) -> str | None:
    """Find a run of Han characters without kana that is too long for Japanese.

    Japanese prose has a particle or an ending every few characters, Chinese has no kana at all. So
    the rule finds even a single Chinese sentence in an answer that CLD2 detects as ``ja``, and
    accepts texts with few kana as a whole: lists of names, addresses, 東京都. A run may contain
    only the punctuation of Chinese clauses: 、, brackets, digits and spaces separate names.
    ``foreign_chars_max`` limits the runs with two or more characters outside code page 932, such as
    为 and 这, which no Japanese character set contains.

    >>> find_kana_gap("第二種中高層住居専用地域、独立行政法人農林水産消費安全技術センター")
    >>> find_kana_gap("影は西側です。因为太阳在东边升起，其光线从西向东照射。以上です。")
    '因为太阳在东边升起，其光线从西向东照射。以上'
    """
    shortest = min(han_chars_max, foreign_chars_max) + 1
    for found in _compile_gap(shortest).finditer(text):
        run = found[0]
        han = "".join(_HAN_RUNS.findall(run))
        if len(han) > han_chars_max:
            return run[:SHOWN_CHARS]
        if len(han) > foreign_chars_max:
            foreign = len(han) - len(han.encode("cp932", "ignore")) // 2
            if foreign >= 2:
                return run[:SHOWN_CHARS]
    return None


@cache
def _compile_gap(han_chars_min: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[{_HAN}][，。；：？！“”]?){{{han_chars_min},}}")
