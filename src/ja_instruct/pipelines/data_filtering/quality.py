"""What speaks against a text beyond the recipe's rules.

Each ``find_`` function looks at one text, after the replacements, and returns what speaks against
it, short enough to be read in a report, or ``None``.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

#: Of what a rule found, at most this many characters are shown.
SHOWN_CHARS = 40
#: Length of the character n-grams by which repetition is measured.
NGRAM_CHARS = 10
#: A loop: the last n-gram stands this often among so many last characters.
_LOOP_COUNT, _LOOP_CHARS = 12, 240

_KANA = "ぁ-ゖァ-ヺー"
_HAN = "㐀-䶿一-鿿豈-﫿々〆"
NOT_JAPANESE = re.compile(f"[^{_KANA}{_HAN}]+")
_KANA_RUNS = re.compile(f"[{_KANA}]+")
_HAN_RUNS = re.compile(f"[{_HAN}]+")
LATIN_RUNS = re.compile("[A-Za-zＡ-Ｚａ-ｚÀ-ÖØ-öø-ɏ]+")

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
# What is cited ends a sentence, a clause or a name; in 正解は[3]です and 空欄の[2] the number is
# itself what is spoken of, behind ASCII it is an index (items[0]).
_BEFORE_NUMBER = re.compile(
    rf"(?:[。．！？」』”）)％%；;、，,：]|[{_KANA}{_HAN}](?<![はのを])"
    r"(?<!空欄)(?<!選択肢)(?<!文献)(?<!番号)(?<!手順)(?<![図表式問題項列])) ?$"
)
_AFTER_NUMBER = re.compile(r"[ 　]?(?:[\[［。．、，）」』;；]|[.,](?!\w)|$)", re.MULTILINE)
_BEHIND_SENTENCE = re.compile(r"[。．！？] ?$|[るたすいだん] ?$")
_BEHIND_NAME = re.compile(r"[」』”）);；,] ?$")
_TEXT_GOES_ON = re.compile(rf" ?[{_KANA}{_HAN}A-Z0-9「『（(]")

# A long answer that ends with a noun or any particle was stopped by a limit of tokens; a short one
# may be a headline, an item of a list or an elliptical sentence.
_LONG_CHARS = 1000
# A text of fewer letters may be a label, a name or a headline that ends as it likes.
_SENTENCE_CHARS = 20
_OPENERS = "「『（(【［[〈《“"
_CLOSERS = {"「": "」", "『": "』", "【": "】", "〈": "〉", "《": "》", "“": "”"} | dict.fromkeys(
    "（(［[", "）)］]"
)
# an emoticon is no broken sentence, nor is one that has ended
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
    """Find a citation mark that was left behind when its reference list was not.

    Marks are numbers (``[3]``, ``［３］``, ``[1][2]``), letters (``[a]``), and the labels of an
    encyclopedia (``[要出典]``, ``[note 1]``, ``[citation needed]``). A number or letter counts only
    where a sentence, a clause or a name is cited, not as an index, a blank or an option, and not
    when a line of the text begins with it, as a list of references does. Code is not looked at.

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
    """Find an answer that breaks off: its end, if no one would end there.

    It ends within a code block or within a bracket opened in its last line, with a comma, a
    conjunction, a particle behind a noun, an empty item of a list, or, from 1,000 characters on, in
    the middle of a sentence. An end without 。 alone says nothing: names,
    lists, headlines and sentences end so.

    >>> find_cut_off("リンゴ、ミカン、バナナ")
    >>> find_cut_off("ローソンは、日本のコンビニエンスストアで")
    'ローソンは、日本のコンビニエンスストアで'
    """
    text = response.rstrip()
    lines = text.rsplit("\n", 1)
    # an end shows itself in its last words, however long the line
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
    """Say whether a bracket is left open, and no sentence has ended since it was opened."""
    opened: list[tuple[str, int]] = []
    for place, character in enumerate(line):
        if character in _CLOSERS:
            opened.append((_CLOSERS[character], place + 1))
        else:
            for number in range(len(opened) - 1, -1, -1):
                if character in opened[number][0]:
                    del opened[number:]
                    break
    # a formula is no broken text
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
    r"""Find degenerate repetition: what is repeated, and how often.

    Three measures, after the repetition filters of Gopher (Rae et al. 2021, arXiv:2112.11446, table
    A1) as DataTrove has them, made for Japanese, which has no spaces and much shorter lines:

    - the share of the text in sentences that stood in it before (Gopher's duplicate lines, there
      20 to 30 %). Items and labels of lists, which may repeat, and the refrains of a song are no
      sentences: one has 10 characters or more, hiragana, and an end or 20 characters or more;
    - the share of its Japanese letters in 10-grams that stood in it before (Gopher's duplicate
      n-grams of 5 to 10 words), from ``ngram_letters_min`` letters on: shorter answers that
      classify things are all repetition by nature. Code, numbers, signs and Latin do not count;
    - the last 10 characters 12 times among the last 240: whoever generates a loop does not leave
      it before the answer is cut off. Lines of signs (``----``) are none.

    >>> find_repetition("犬：動物\nバラ：植物\n猫：動物\n松：植物\n馬：動物")
    >>> find_repetition("散歩に行きます。" + "今日はとても良い天気です。" * 4)
    '今日はとても良い天気です ×4'
    >>> find_repetition("激しい腹痛の原因は" + "胆石症、" * 40)
    '胆石症、 ×40'

    Args:
        text: The text.
        sentence_percent_max: Most characters, in percent, in repeated sentences.
        ngram_percent_max: Most letters, in percent, in repeated 10-grams.
        ngram_letters_min: Fewest letters of a text whose 10-grams are looked at.
    """
    unit = _find_loop(text.rstrip()[-_LOOP_CHARS:])
    if unit is not None:
        return _show(unit, text.count(unit))
    sentences = _count_sentences(text)
    repeated = sum(len(sentence) * (count - 1) for sentence, count in sentences.items())
    if repeated * 100 > sentence_percent_max * len(text):
        return _show(*sentences.most_common(1)[0])
    if len(text) >= ngram_letters_min:
        letters = NOT_JAPANESE.sub("", _CODE.sub("", text) if "`" in text else text)
        if len(letters) >= ngram_letters_min:
            ngrams = cut_ngrams(letters)
            most = ngram_percent_max * len(letters)
            # most texts have too few repeated n-grams to come near, even if none overlapped
            repeated_most = NGRAM_CHARS * (len(ngrams) - len(set(ngrams)))
            if repeated_most * 100 > most and measure_ngrams(ngrams) * 100 > most:
                return _show(*Counter(ngrams).most_common(1)[0])
    return None


def _find_loop(tail: str) -> str | None:
    ngram = tail[-NGRAM_CHARS:]
    if tail.count(ngram) < _LOOP_COUNT or not re.search(r"[^\W_ー]", ngram):
        return None
    unit = tail[tail.rfind(ngram, 0, -1) + len(ngram) :]
    # not what differs from turn to turn, such as numbers of items
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


def cut_ngrams(letters: str) -> list[str]:
    """Return all runs of ``NGRAM_CHARS`` letters, in order."""
    return [letters[i : i + NGRAM_CHARS] for i in range(len(letters) - NGRAM_CHARS + 1)]


def measure_ngrams(ngrams: list[str]) -> int:
    """Return how many characters lie in an n-gram that stood before it."""
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


def measure_kana_share(text: str) -> float:
    """Return the share of kana among kana and Han characters, 0 to 1; 1 without any.

    Latin, digits and signs do not count: they are as frequent in Chinese as in Japanese, and would
    make a Japanese answer about code look foreign.

    >>> round(measure_kana_share("首都は東京です (Tokyo)。"), 2)
    0.43
    """
    kana = sum(map(len, _KANA_RUNS.findall(text)))
    han = sum(map(len, _HAN_RUNS.findall(text)))
    return kana / (kana + han) if kana + han else 1.0


def find_kana_gap(text: str, *, han_chars_max: int = 20, foreign_chars_max: int = 12) -> str | None:
    """Find a stretch of Han characters without kana between them, too long for Japanese.

    Japanese prose has a particle or an ending every few characters, Chinese has no kana at all. So
    this finds also the one Chinese sentence in an answer of which CLD2 says ``ja``, and leaves
    alone what has few kana as a whole: lists of names, addresses, 東京都. Only the punctuation of
    Chinese clauses may stand within a stretch: 、, brackets, digits and spaces part names.

    >>> find_kana_gap("第二種中高層住居専用地域、独立行政法人農林水産消費安全技術センター")
    >>> find_kana_gap("影は西側です。因为太阳在东边升起，其光线从西向东照射。以上です。")
    '因为太阳在东边升起，其光线从西向东照射。以上'

    Args:
        text: The text.
        han_chars_max: Most Han characters in a stretch.
        foreign_chars_max: Most Han characters in a stretch with two or more that no Japanese
            character set has (those outside code page 932, such as 为 and 这).
    """
    shortest = min(han_chars_max, foreign_chars_max) + 1
    for found in _compile_gap(shortest).finditer(text):
        stretch = found[0]
        han = "".join(_HAN_RUNS.findall(stretch))
        if len(han) > han_chars_max:
            return stretch[:SHOWN_CHARS]
        if len(han) > foreign_chars_max:
            foreign = len(han) - len(han.encode("cp932", "ignore")) // 2
            if foreign >= 2:
                return stretch[:SHOWN_CHARS]
    return None


@cache
def _compile_gap(han_chars_min: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[{_HAN}][，。；：？！“”]?){{{han_chars_min},}}")
