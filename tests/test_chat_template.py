"""Small templates of the kinds that models have."""

import datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_tokenizers import make_tokenizer

from ja_instruct.chat_template import ChatTemplate
from ja_instruct.errors import InputError
from ja_instruct.prompts import PromptBuilder, PromptParameters

TURNS = (
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
    "{% endfor %}"
)
OPEN = "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
# an empty block before the last answer, as Qwen 3's
THINKS = (
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') }}<end_of_turn>\n{% endfor %}" + OPEN
)
# the prompt opens a block that samples do not have, as DeepSeek R1's
OPENS_BLOCK = TURNS + OPEN.replace("assistant\n", "assistant\n<think>\n")
# the date of today, as Llama 3's
DATES = "Today: {{ strftime_now('%d %b %Y') }}\n" + TURNS + OPEN
# a system turn where there is none, as Qwen 2.5's
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<start_of_turn>system\nあなたは…<end_of_turn>\n"
    "{% endif %}" + TURNS + OPEN
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + TURNS
    + OPEN
)
IGNORES_SYSTEM = TURNS.replace("messages %}", "messages if m['role'] != 'system' %}") + OPEN
# spaces around both, as Llama 2's
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
HISTORY = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "はい\n"},
    {"role": "user", "content": " はい"},
    {"role": "assistant", "content": "<end_of_turn>"},
]
TRL_TEMPLATES = sorted(Path(find_spec("trl").origin).parent.glob("chat_templates/*.jinja"))
SYSTEM = {"role": "system", "content": "短く答えなさい。"}


@pytest.fixture
def tokenizer(tiny_gemma2):
    return tiny_gemma2.load_tokenizer()


@pytest.fixture
def builder(tokenizer, read_parameters):
    """A function from a template to the builder with it."""

    def make(template, of=tokenizer):
        of.chat_template = template
        section = read_parameters("base")["prompts"]
        return PromptBuilder(PromptParameters(**{**section, "format": "chat_template"}), of)

    return make


def test_block_before_the_answer_is_in_the_prompt_of_both(builder):
    with_block = builder(THINKS)
    start = "<start_of_turn>assistant\n<think>\n\n</think>\n\n"
    prompt = f"<start_of_turn>user\n質問<end_of_turn>\n{start}"
    sample = with_block.sample("質問", "答え")
    assert (sample.prompt, sample.completion) == (prompt, "答え<end_of_turn>\n")
    assert with_block.prompt("質問", []) == prompt
    # earlier turns have none
    assert with_block.prompt("質問", [{"input": "一", "output": "二"}]) == (
        "<start_of_turn>user\n一<end_of_turn>\n<start_of_turn>assistant\n二<end_of_turn>\n" + prompt
    )


def test_block_of_the_prompt_alone_is_refused_with_the_first_difference(builder):
    with pytest.raises(InputError) as caught:
        builder(OPENS_BLOCK)
    message = str(caught.value)
    assert "writes a prompt that is not the beginning of the sample" in message
    assert r"<start_of_turn>assistant\n<think>\n' in the prompt" in message
    assert r"assistant\n…<end_of_turn>\n' in the sample" in message


def test_answer_that_the_template_rewrites_is_refused(builder):
    with pytest.raises(InputError, match="changes the answer '考え</think>答え' to '答え'"):
        builder(THINKS).sample("質問", "考え</think>答え")


def test_date_is_always_the_same(builder):
    today = builder(DATES).prompt("質問", [])
    assert today.startswith("Today: 26 Jul 2024\n<start_of_turn>user\n質問<end_of_turn>\n")
    assert datetime.datetime.now(tz=datetime.UTC).strftime("%Y") not in today
    assert builder(DATES).sample("質問", "答え").prompt == today


def test_default_system_turn_is_in_both(builder):
    with_default = builder(DEFAULT_SYSTEM)
    prompt = with_default.prompt("質問", [])
    assert prompt.startswith("<start_of_turn>system\nあなたは…<end_of_turn>\n<start_of_turn>user\n")
    assert with_default.sample("質問", "答え").prompt == prompt
    own = with_default.sample("質問", "答え", [SYSTEM]).prompt
    assert own == prompt.replace("あなたは…", "短く答えなさい。")


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, IGNORES_SYSTEM])
def test_system_turn_that_a_template_does_not_take_goes_before_the_question(builder, template):
    sample = builder(template).sample("質問", "答え", [SYSTEM, *HISTORY[:2]])
    assert sample.prompt == (
        "<start_of_turn>user\n短く答えなさい。\n\nuser<end_of_turn>\n"
        "<start_of_turn>assistant\nはい\n<end_of_turn>\n"
        "<start_of_turn>user\n質問<end_of_turn>\n<start_of_turn>assistant\n"
    )


@pytest.mark.parametrize("template", [TURNS + OPEN, THINKS])
def test_earlier_answers_are_found_although_their_text_occurs_elsewhere(builder, template):
    sample = builder(template).sample("質問", "答え", HISTORY)
    found = [sample.prompt[start:end] for start, end in sample.earlier_answers]
    assert found == ["はい\n<end_of_turn>\n", "<\ufdd0end_of_turn><end_of_turn>\n"]
    assert sample.completion == "答え<end_of_turn>\n"
    assert sample.prompt.count("<end_of_turn>") == 5


def test_spaces_of_a_template_stay_with_the_answer(builder):
    """``▁はい`` may be one token: a prompt with the space would have other ids."""
    llama = make_tokenizer("llama")
    spaced = builder(SPACED, llama)
    sample = spaced.sample("質問", "答え", [*HISTORY[:2]])
    assert sample.prompt == "[INST] user [/INST] はい </s>[INST] 質問 [/INST]"
    assert sample.completion == " 答え "
    assert [sample.prompt[slice(*span)] for span in sample.earlier_answers] == [" はい </s>"]


def test_prompt_whose_last_token_differs_from_the_samples_is_refused(builder):
    llama = make_tokenizer("byte_level")
    llama.add_tokens(["A:は"])
    template = (
        "{{ messages[0]['content'] }}A:{% if messages[1] %}{{ messages[1]['content'] }}{% endif %}"
    )
    with pytest.raises(
        InputError, match=r"from token \d+ on: .*'A', ':'\] in the prompt, .*'A:は'"
    ):
        builder(template, llama)


def test_turns_that_a_template_leaves_out_are_refused(builder):
    template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="leaves out, repeats or moves a turn"):
        builder(template)


# Their prompts open a block that samples lack
REFUSED = ("deepseek",)
# of models with images: contents are lists
OTHER_CONTENTS = ("idefics3", "llava", "smolvlm")


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = make_tokenizer("byte_level")
    names = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    return tokenizer


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_trl(builder, byte_level, path):
    """Templates as models have them: used or refused with the reason."""
    template = path.read_text("utf-8")
    if path.name.startswith((*REFUSED, *OTHER_CONTENTS)):
        reason = "not the beginning" if path.name.startswith(REFUSED) else "fails: |leaves out"
        with pytest.raises(InputError, match=reason):
            builder(template, byte_level)
        return
    used = builder(template, byte_level)
    sample = used.sample("質問", "答え", HISTORY[:2])
    assert sample.prompt == used.prompt("質問", [{"input": "user", "output": "はい\n"}])
    assert sample.completion.lstrip().startswith("答え")
    ((start, end),) = sample.earlier_answers
    assert sample.prompt[start:end].lstrip().startswith("はい")
    assert "質問" not in sample.prompt[:end]


@pytest.mark.parametrize("template", [TURNS + OPEN, THINKS, DATES, DEFAULT_SYSTEM])
def test_turn_ends_with_its_token(tokenizer, template):
    tokenizer.chat_template = template
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert ChatTemplate(tokenizer).end_of_turn() == end
