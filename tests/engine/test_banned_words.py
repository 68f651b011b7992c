import pytest
import torch

from ja_instruct.engine.banned_words import BannedText, BannedWords, SparingPenalty


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma2):
    return tiny_gemma2.load_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def say(tokenizer, wanted, words, prompt=()):
    """What greedy decoding says when each step wants one token most, then those beside it."""
    said = list(prompt)
    for token in wanted:
        processor = BannedText(tokenizer, words, len(prompt))
        size = len(tokenizer)
        scores = -torch.arange(size).sub(token).abs().float()[None]
        said.append(int(processor(torch.tensor([said]).long(), scores)[0].argmax()))
    return said[len(prompt) :]


def say_slowly(tokenizer, wanted, words):
    """The same, trying the whole vocabulary with the whole answer decoded."""
    said = []
    for wish in wanted:
        for token in sorted(range(len(tokenizer)), key=lambda one: (abs(one - wish), one)):
            text = tokenizer.decode([*said, token], skip_special_tokens=True)
            if not any(word in text for word in words):
                said.append(token)
                break
    return said


def bytes_of(tokenizer, text):
    """The text, one byte a token."""
    return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]


class TestBannedText:
    @pytest.mark.parametrize("word", ["質問", "###", "日本の首都", "。\n"])
    def test_any_tokenization_is_banned(self, tokenizer, word):
        spellings = [
            ids(tokenizer, word),
            [one for character in word for one in ids(tokenizer, character)],
            bytes_of(tokenizer, word),
            [*bytes_of(tokenizer, word[0]), *ids(tokenizer, word[1:])],
        ]
        for spelling in spellings:
            assert tokenizer.decode(spelling) == word
            wanted = [*ids(tokenizer, "春は"), *spelling]
            said = say(tokenizer, wanted, [word])
            assert word not in tokenizer.decode(said)
            # only the token that would have completed it is another
            assert said[:-1] == wanted[:-1]
            assert said == say_slowly(tokenizer, wanted, [word])

    def test_in_the_middle_of_a_token(self, tokenizer):
        (token,) = (one for one in ids(tokenizer, "です。") if "で" in tokenizer.decode([one]))
        assert say(tokenizer, [token], ["で"]) != [token]

    @pytest.mark.parametrize("seed", range(8))
    def test_slow_reference(self, tokenizer, seed):
        """Random tokens, bytes and special ones among them, and random pieces of them banned."""
        generator = torch.Generator().manual_seed(seed)
        wanted = torch.randint(0, len(tokenizer), (25,), generator=generator).tolist()
        text = tokenizer.decode(wanted, skip_special_tokens=True)
        words = [text[i : i + 3] for i in (2, 9, 15) if "�" not in text[i : i + 3]]
        said = say(tokenizer, wanted, words)
        assert said == say_slowly(tokenizer, wanted, words)
        assert not [word for word in words if word in tokenizer.decode(said)]

    def test_special_tokens_between_do_not_hide_it(self, tokenizer):
        turn = tokenizer.convert_tokens_to_ids("<start_of_turn>")
        wanted = [*ids(tokenizer, "#"), *[turn] * 40, *ids(tokenizer, "#")]
        said = say(tokenizer, wanted, ["##"])
        assert said[:-1] == wanted[:-1]
        assert "##" not in tokenizer.decode(said, skip_special_tokens=True)

    def test_the_prompt_does_not_count(self, tokenizer):
        (mark,) = ids(tokenizer, "#")
        assert say(tokenizer, [mark], ["##"], prompt=[mark]) == [mark]
        assert say(tokenizer, [mark], ["#"], prompt=[mark]) != [mark]

    def test_special_token_is_chosen_if_all_words_are_banned(self, tokenizer):
        """Then what says nothing is: a special token, and at last EOS."""
        words = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        words = sorted({word for word in words if word and "<" not in word})
        (said,) = say(tokenizer, ids(tokenizer, "#"), words)
        assert not any(word in tokenizer.decode([said]) for word in words)

    def test_rows_are_independent(self, tokenizer):
        (mark,) = ids(tokenizer, "#")
        (season,) = ids(tokenizer, "春")
        rows = torch.tensor([[9, mark], [9, season]])
        scores = torch.zeros(2, len(tokenizer))
        scores[:, mark] = 1.0
        processed = BannedText(tokenizer, ["##"], 1)(rows, scores)
        assert processed[0, mark] == float("-inf")
        assert torch.equal(processed[1], scores[1])
        assert scores[0, mark] == 1.0

    def test_scores_without_a_banned_word_are_the_same(self, tokenizer):
        scores = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(0))
        (mark,) = ids(tokenizer, "#")
        scores[0, mark] = -9.0
        assert BannedText(tokenizer, ["#"], 0)(torch.tensor([[3]]), scores) is scores


def find_stepwise(tokenizer, answer, start, words):
    """The first token that ``BannedText`` would not have let stand."""
    for index in range(start, len(answer)):
        scores = torch.zeros(1, len(tokenizer))
        scores[0, answer[index]] = 1.0
        processor = BannedText(tokenizer, words, 0)
        if processor(torch.tensor([answer[:index]]).long(), scores)[0].argmax() != answer[index]:
            return index
    return None


class TestFindingBannedWords:
    """What an engine asks every few steps is what ``BannedText`` would have said at each."""

    @pytest.mark.parametrize("seed", range(12))
    def test_slow_reference(self, tokenizer, seed):
        generator = torch.Generator().manual_seed(seed)
        # plain text, and in every third case bytes that are none as well
        lowest = 0 if seed % 3 == 0 else 300
        answer = torch.randint(lowest, len(tokenizer), (24,), generator=generator).tolist()
        text = tokenizer.decode(answer, skip_special_tokens=True)
        place = int(torch.randint(0, len(text) - 3, (), generator=generator))
        words = ["質問", text[place : place + 1 + seed % 3]]
        found = set()
        for start in (0, 5, 11, 23):
            expected = find_stepwise(tokenizer, answer, start, words)
            assert BannedWords(tokenizer, words).find_banned(answer, start) == expected
            found.add(expected)
        assert found != {None}

    @pytest.mark.parametrize("text", ["日本の首都は東京です。", ""])
    def test_answer_without_one(self, tokenizer, text):
        assert BannedWords(tokenizer, ["質問"]).find_banned(ids(tokenizer, text), 0) is None

    def test_word_that_began_before(self, tokenizer):
        answer = [*bytes_of(tokenizer, "質"), *[5] * 30, *bytes_of(tokenizer, "問"), *[5] * 3]
        last = answer.index(bytes_of(tokenizer, "問")[-1], 33)
        for start in (0, 3, 20, 34):
            assert BannedWords(tokenizer, ["質問"]).find_banned(answer, start) == last

    def test_word_hidden_by_the_next_bytes(self, tokenizer):
        """A run of bytes with half a character is decoded as none at all."""
        answer = [*bytes_of(tokenizer, "春"), bytes_of(tokenizer, "春")[0]]
        assert "春" not in tokenizer.decode(answer)
        assert BannedWords(tokenizer, ["春"]).find_banned(answer, 0) == 2

    def test_word_hidden_by_cleaned_up_spaces(self, tokenizer, monkeypatch):
        """As GPT-2's tokenizer does it: a blank before a full stop goes."""
        decode = type(tokenizer).decode

        def cleaned(self, tokens, **kwargs):
            return decode(self, tokens, **kwargs).replace(" .", ".")

        monkeypatch.setattr(type(tokenizer), "decode", cleaned)
        monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", True)
        answer = [*ids(tokenizer, "a"), *bytes_of(tokenizer, " ."), *ids(tokenizer, "b")]
        assert "a " not in tokenizer.decode(answer)
        expected = find_stepwise(tokenizer, answer, 0, ["a "])
        assert expected is not None
        assert BannedWords(tokenizer, ["a "]).find_banned(answer, 0) == expected


class TestSparingPenalty:
    SCORES = torch.tensor([[2.0, -2.0, 4.0, -4.0, 1.0]])

    def process(self, ids, ignored=0, spared=()):
        return SparingPenalty(2.0, ignored, spared)(torch.tensor([ids]), self.SCORES)[0].tolist()

    def test_penalizes_earlier_tokens(self):
        assert self.process([0, 1, 1]) == [1.0, -4.0, 4.0, -4.0, 1.0]

    def test_ignores_the_prompt(self):
        assert self.process([0, 1, 2], ignored=2) == [2.0, -2.0, 2.0, -4.0, 1.0]
        assert self.process([0, 1], ignored=2) == self.SCORES[0].tolist()

    def test_spares_tokens(self):
        assert self.process([0, 2, 3], spared=[2, 4]) == [1.0, -2.0, 4.0, -8.0, 1.0]

    def test_does_not_change_its_input(self):
        before = self.SCORES.clone()
        self.process([0, 1, 2], spared=[0])
        assert torch.equal(self.SCORES, before)
