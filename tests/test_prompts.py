import pytest
from pydantic import ValidationError

from ja_instruct.chat_template import ChatTemplate
from ja_instruct.config import explain_errors
from ja_instruct.errors import InputError
from ja_instruct.prompts import PromptBuilder, PromptParameters, training_prompt

QUESTION = "波括弧{}と{input}を含む「質問」\u2028改行\nはどうなりますか。"
EXAMPLES = [
    {"input": "一番遠い質問", "output": "一番遠い回答", "score": 1.0},
    {"input": "次に遠い\n質問", "output": "{output}\n- 箇条書き", "score": 2.0},
    {"input": "一番近い質問", "output": "一番近い回答", "score": 3.0},
]
TRAIN_HEAD = (
    "\nあなたは高性能なAIです。質問に対して、適切な回答を書きなさい。\n"
    "回答に関係のないことは絶対に書かないでください。\n"
)
FORMATS = ("recipe", "training_prompt", "chat_template")
# what other models' templates do
WRITES_EOS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q]' + m['content'] }}"
    "{% else %}{{ '[A]' + m['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[A]' }}{% endif %}"
)


def training_sample(prompts, question, answer, tokenizer):
    sample = PromptBuilder(prompts, tokenizer).sample(question, answer)
    assert not sample.earlier_answers
    return sample.prompt, sample.completion


def inference_prompt(prompts, task, examples, tokenizer):
    return PromptBuilder(prompts, tokenizer).prompt(task, examples)


def end_of_turn(tokenizer):
    return ChatTemplate(tokenizer).end_of_turn()


@pytest.fixture(scope="module")
def prompts(read_parameters):
    return PromptParameters(**read_parameters("base")["prompts"])


def test_training_prompt_in_full(prompts):
    expected = f"{TRAIN_HEAD}\n### 質問:\n{QUESTION}\n\n### 回答:\n"
    assert training_prompt(prompts, QUESTION) == expected


def test_few_shot_prompt_in_full(prompts, tokenizer):
    header = "質問・文章をよく読んで、正確で親切な回答を書きなさい。\n"
    examples = (
        "### 質問:\n次に遠い\n質問\n\n### 回答:\n{output}\n- 箇条書き\n\n\n"
        "### 質問:\n一番近い質問\n\n### 回答:\n一番近い回答\n\n\n"
    )
    task = (
        "あなたは日本語が堪能な優秀な人間です。\n"
        "**文脈**を踏まえて、改行と箇条書きを駆使して、日本語で**詳細に**書きなさい。\n"
        "優秀な人間になりきって、推測をいれずに根拠をもってわかりやすく答えてください。"
        f"### 質問:\n{QUESTION}\n\n### 回答:\n"
    )
    found = inference_prompt(prompts, QUESTION, EXAMPLES[1:], tokenizer)
    assert found == header + examples + task
    assert inference_prompt(prompts, QUESTION, [], tokenizer) == header + task


JSON_ANSWER = '次の形のJSONで答えなさい: {"answer": "…"}\n### 質問:\n{input}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_prompt", "質問:{}", "must contain {} twice"),
        ("train_prompt", "{}と{}、以上", "the second at its end"),
        ("train_prompt", "{}と{}と{}", "must contain {} twice"),
        ("train_prompt", "{0}と{1}", "'{0}' is not among its placeholders {};"),
        ("train_prompt", "{input}:{output}", "'{input}' is not among its placeholders {};"),
        ("train_prompt", "{{}}と{{}}", "must contain {}"),
        ("task_prompt", "質問:", "must contain {input}"),
        ("task_prompt", "{{input}}", "must contain {input}"),
        ("task_prompt", JSON_ANSWER, "'{\"answer\": …}' is not among its placeholders {input}; w"),
        (
            "task_prompt",
            "{input}\n}",
            "unpaired brace (Single '}' encountered in format string); w",
        ),
        (
            "task_prompt",
            "{input}\n{",
            "unpaired brace (Single '{' encountered in format string); w",
        ),
        (
            "task_prompt",
            "{input\n回答:",
            "unpaired brace (",
        ),
        ("task_prompt", "{}", "'{}' is not among its placeholders {input};"),
        ("task_prompt", "{ input }", "'{ input }' is not among its placeholders {input};"),
        ("task_prompt", "{input.title}", "'{input.title}' is not among its placeholders {input};"),
        ("task_prompt", "{input[0]}", "'{input[0]}' is not among its placeholders {input};"),
        ("task_prompt", "{input}{output}", "'{output}' is not among its placeholders {input};"),
        ("task_prompt", "{input:>10}", "placeholders have no format: write {input} alone"),
        ("task_prompt", "{input!r}", "placeholders have no format: write {input} alone"),
        ("few_shot_example", "{output}", "must contain {input} and {output}"),
        ("few_shot_example", "{input}", "must contain {input} and {output}"),
        (
            "few_shot_example",
            "{input}{answer}",
            "'{answer}' is not among its placeholders {input} ",
        ),
        ("format", "chat", "'recipe', 'training_prompt' or 'chat_template'"),
    ],
)
def test_unusable_parameters_are_refused_with_key_and_remedy(prompts, name, text, message):
    with pytest.raises(ValidationError) as caught:
        PromptParameters(**{**prompts.model_dump(), name: text})
    (explained,) = explain_errors(caught.value, PromptParameters, "prompts")
    assert explained.startswith(f"'prompts.{name}' = {text[:20]!r}"[:-1])
    assert message in explained
    if "brace" in explained or "placeholders" in message:
        assert explained.endswith("write {{ and }} for braces that belong to the text")


def test_braces_of_the_text_itself(prompts, tokenizer):
    texts = {
        "few_shot_header": 'JSON {"answer": "…"} で、}{ も書ける。\n',
        "few_shot_example": '{{"q": "{input}", "a": "{output}"}}\n',
        "task_prompt": '{{"q": "{input}", "a": "',
        "train_prompt": '{{"q": "{}", "a": "{}',
    }
    prompts = PromptParameters(**{**prompts.model_dump(), **texts})
    builder = PromptBuilder(prompts, tokenizer)
    found = builder.prompt("問{x}", [{"input": "一", "output": "二"}])
    assert found == (
        'JSON {"answer": "…"} で、}{ も書ける。\n{"q": "一", "a": "二"}\n{"q": "問{x}", "a": "'
    )
    assert training_prompt(prompts, "問") == '{"q": "問", "a": "'


@pytest.fixture
def tokenizer(tiny_nf4):
    """With the recipe's chat template; a test may change it."""
    return tiny_nf4.load_tokenizer()


@pytest.fixture
def in_format(prompts):
    return lambda name: prompts.model_copy(update={"format": name})


class TestTrainingPrompt:
    @pytest.mark.parametrize("name", ["recipe", "training_prompt"])
    def test_sample_is_train_prompt_and_answer(self, in_format, tokenizer, name):
        prompts = in_format(name)
        sample = training_sample(prompts, QUESTION, " 答え\n", tokenizer)
        assert sample == (training_prompt(prompts, QUESTION), " 答え\n")

    def test_in_full(self, in_format, tokenizer):
        found = inference_prompt(in_format("training_prompt"), "首都は?", EXAMPLES[1:], tokenizer)
        assert found == (
            f"{TRAIN_HEAD}\n### 質問:\n次に遠い\n質問\n\n### 回答:\n{{output}}\n- 箇条書き<eos>"
            f"{TRAIN_HEAD}\n### 質問:\n一番近い質問\n\n### 回答:\n一番近い回答<eos>"
            f"{TRAIN_HEAD}\n### 質問:\n首都は?\n\n### 回答:\n"
        )

    def test_examples_are_training_samples_token_by_token(self, in_format, tokenizer):
        prompts = in_format("training_prompt")
        expected = [tokenizer.bos_token_id]
        for example in EXAMPLES:
            sample = training_sample(prompts, example["input"], example["output"], tokenizer)
            text = "".join(sample)
            expected += [*tokenizer(text)["input_ids"][1:], tokenizer.eos_token_id]
        expected += tokenizer(training_prompt(prompts, QUESTION))["input_ids"][1:]
        found = inference_prompt(prompts, QUESTION, EXAMPLES, tokenizer)
        assert tokenizer(found)["input_ids"] == expected

    def test_tokenizer_without_eos_is_refused(self, in_format, tokenizer):
        tokenizer.eos_token = None
        with pytest.raises(InputError, match=r"no end-of-sequence token.*tokenizer_config\.json"):
            inference_prompt(in_format("training_prompt"), QUESTION, EXAMPLES, tokenizer)


class TestChatTemplate:
    def test_sample_in_full(self, in_format, tokenizer):
        sample = training_sample(in_format("chat_template"), QUESTION, "東京です。", tokenizer)
        assert sample == (
            f"<start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
            "東京です。<end_of_turn>\n",
        )

    def test_prompt_in_full(self, in_format, tokenizer):
        found = inference_prompt(in_format("chat_template"), "首都は?", EXAMPLES[1:], tokenizer)
        assert found == (
            "<start_of_turn>user\n次に遠い\n質問<end_of_turn>\n"
            "<start_of_turn>model\n{output}\n- 箇条書き<end_of_turn>\n"
            "<start_of_turn>user\n一番近い質問<end_of_turn>\n"
            "<start_of_turn>model\n一番近い回答<end_of_turn>\n"
            "<start_of_turn>user\n首都は?<end_of_turn>\n<start_of_turn>model\n"
        )

    @pytest.mark.parametrize("answer", ["", " \n"])
    def test_empty_answer_has_an_empty_completion(self, in_format, tokenizer, answer):
        prompts = in_format("chat_template")
        found = inference_prompt(prompts, QUESTION, [], tokenizer)
        assert training_sample(prompts, QUESTION, answer, tokenizer) == (found, "")

    def test_bos_stays_where_the_tokenizer_adds_none(self, in_format, tokenizer):
        prompts = in_format("chat_template")
        without = inference_prompt(prompts, QUESTION, EXAMPLES, tokenizer)
        ids = tokenizer(without)["input_ids"]
        tokenizer.add_bos_token = False
        assert tokenizer("質問")["input_ids"][:1] != [tokenizer.bos_token_id]
        found = inference_prompt(prompts, QUESTION, EXAMPLES, tokenizer)
        assert found == "<bos>" + without
        assert tokenizer(found)["input_ids"] == ids

    def test_eos_of_the_template_is_written_once(self, in_format, tokenizer):
        tokenizer.chat_template = WRITES_EOS
        prompts = in_format("chat_template")
        sample = training_sample(prompts, "首都は?", "東京です。", tokenizer)
        assert sample == ("[Q]首都は?[A]", "東京です。")
        found = inference_prompt(prompts, "首都は?", EXAMPLES[2:], tokenizer)
        assert found == "[Q]一番近い質問[A]一番近い回答<eos>\n[Q]首都は?[A]"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            (None, "is missing"),
            ("{{ raise_exception('問いが長い') }}", "fails: 問いが長い"),
            ("{% for", "fails: "),
            ("{{ messages[0]['content'] + 1 }}", "fails: "),
            # another beginning for a conversation that has its answer
            (
                "{{ messages | length }}{{ messages[-1]['content'] }}",
                "differ from character 1 on: '1…' in the prompt, '2…' in the sample",
            ),
            # an answer that is not the one given
            (
                "{{ messages[0]['content'] }}{% if messages[1] %}"
                "{{ messages[1]['content'] | replace('東', '西') }}{% endif %}",
                "changes the answer",
            ),
        ],
    )
    def test_unusable_templates_are_refused(self, in_format, tokenizer, template, message):
        tokenizer.chat_template = template
        prompts = in_format("chat_template")
        with pytest.raises(InputError, match=message) as caught:
            training_sample(prompts, "日本の首都はどこですか。", "東京です。", tokenizer)
        assert str(caught.value).startswith("prompts.format is 'chat_template', but")
        for remedy in ("'training_prompt' or 'recipe'", "quantization.chat_template"):
            assert remedy in str(caught.value)

    def test_turn_ends_with_the_templates_token(self, tokenizer):
        assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def test_turn_that_ends_with_eos_has_no_other_end(self, tokenizer):
        tokenizer.chat_template = WRITES_EOS
        assert end_of_turn(tokenizer) is None

    def test_end_of_turn_need_not_be_special(self, tokenizer):
        tokenizer.add_tokens(["[END]"])
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n[END]{% endfor %}"
        assert "[END]" not in tokenizer.all_special_tokens
        assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("[END]")


@pytest.mark.parametrize("name", ["training_prompt", "chat_template"])
@pytest.mark.parametrize("question", [QUESTION, " 空白で始まり、改行で終わる質問\n", ""])
def test_without_examples_the_prompt_is_that_of_training(in_format, tokenizer, name, question):
    prompts = in_format(name)
    found = tokenizer(inference_prompt(prompts, question, [], tokenizer))["input_ids"]
    prompt, completion = training_sample(prompts, question, "東京です。", tokenizer)
    whole = tokenizer(prompt + completion)["input_ids"]
    assert found == tokenizer(prompt)["input_ids"] == whole[: len(found)]
    assert tokenizer.decode(whole[len(found) :], skip_special_tokens=True).strip() == "東京です。"


@pytest.mark.parametrize("name", FORMATS)
def test_there_is_one_bos_at_the_very_start(in_format, tokenizer, name):
    prompts = in_format(name)
    found = inference_prompt(prompts, QUESTION, EXAMPLES, tokenizer)
    sample = "".join(training_sample(prompts, QUESTION, "答え", tokenizer))
    for ids in (tokenizer(found)["input_ids"], tokenizer(sample)["input_ids"]):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
