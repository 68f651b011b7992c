"""Values that a library would refuse later are refused before the run, with their key."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
from kedro.framework.project import configure_project
from pydantic import ValidationError

from ja_instruct.config import explain_errors
from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.parameters import TrainingParameters
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

TRAINING = "sft.training."
LORA = "sft.lora."
POSITIVE = "greater than 0"
NUMBER = "must be a number"
FINITE = "finite number"

# key, value, words of the message
REFUSED = [
    (TRAINING + "optim", "adamw8bit", "not the name of an optimizer; did you mean 'adamw_8bit'?"),
    (TRAINING + "optim", "muon", "an optimizer; the names are adafactor, adagrad, adamw_8bit,"),
    (TRAINING + "optim", "galore_adamw", "cannot be used: it projects whole matrices"),
    (TRAINING + "optim", "adamw_torch_npu_fused", "cannot be used: it needs an Ascend NPU"),
    (TRAINING + "lr_scheduler_type", "cosinus", "a schedule; did you mean 'cosine'?"),
    (TRAINING + "lr_scheduler_type", "cosine_with_min_lr", "lr_scheduler_kwargs.min_lr or min_lr_"),
    (TRAINING + "lr_scheduler_type", "warmup_stable_decay", "needs lr_scheduler_kwargs.num_decay"),
    (TRAINING + "lr_scheduler_type", "reduce_lr_on_plateau", "needs training.eval_strategy steps"),
    (TRAINING + "lr_scheduler_kwargs", {"num_cycles": 2}, "'linear' has no arguments"),
    (TRAINING + "lr_scheduler_kwargs", ["num_cycles"], "valid dictionary"),
    (TRAINING + "report_to", "wndb", "not the name of a reporter ('wndb'); did you mean 'wandb'?"),
    (TRAINING + "report_to", ["mlflow", "none"], "a reporter ('none'); the names are azure_ml, "),
    (TRAINING + "learning_rate", 0, POSITIVE),
    (TRAINING + "learning_rate", -2e-4, POSITIVE),
    (TRAINING + "learning_rate", float("inf"), FINITE),
    (TRAINING + "learning_rate", float("nan"), FINITE),
    (TRAINING + "learning_rate", "2e-4x", "valid number"),
    (TRAINING + "learning_rate", True, NUMBER),
    (TRAINING + "per_device_train_batch_size", 0, POSITIVE),
    (TRAINING + "per_device_train_batch_size", 2.5, "valid integer"),
    (TRAINING + "per_device_eval_batch_size", -1, POSITIVE),
    (TRAINING + "gradient_accumulation_steps", 0, POSITIVE),
    (TRAINING + "num_train_epochs", 0, POSITIVE),
    (TRAINING + "num_train_epochs", None, "valid number"),
    (TRAINING + "max_steps", 0, "at least 1, or -1 for whole epochs"),
    (TRAINING + "max_steps", -2, "at least 1, or -1 for whole epochs"),
    (TRAINING + "max_steps", "1e3", "valid integer"),
    (TRAINING + "warmup_steps", -1, "greater than or equal to 0"),
    (TRAINING + "weight_decay", -0.1, "greater than or equal to 0"),
    (TRAINING + "bf16", "maybe", "valid boolean"),
    (TRAINING + "neftune_noise_alpha", -5, "greater than or equal to 0"),
    (TRAINING + "auto_find_batch_size", 3, "valid boolean"),
    (TRAINING + "gradient_checkpointing", "unsloth", "valid boolean"),
    (TRAINING + "tokens_per_batch", 0, POSITIVE),
    (TRAINING + "tokens_per_batch", 100, "less than max_seq_length = 2048"),
    (TRAINING + "packing", True, "packing needs training.tokens_per_batch"),
    (TRAINING + "logging_steps", 0, POSITIVE),
    (TRAINING + "logging_steps", 0.5, "valid integer"),
    (TRAINING + "eval_strategy", False, "'no', 'steps' or 'epoch'; write no, yes, on and off in q"),
    (TRAINING + "eval_strategy", "never", "'no', 'steps' or 'epoch'"),
    (TRAINING + "eval_steps", 0, POSITIVE),
    (TRAINING + "early_stopping_patience", 0, POSITIVE),
    (TRAINING + "early_stopping_patience", 2, "needs eval_fraction above 0"),
    (TRAINING + "early_stopping_threshold", -1, "greater than or equal to 0"),
    (TRAINING + "divergence_nats", 0, POSITIVE),
    (TRAINING + "save_strategy", "best", "'no', 'steps' or 'epoch'"),
    (TRAINING + "save_steps", -300, POSITIVE),
    (TRAINING + "save_total_limit", 0, POSITIVE),
    (TRAINING + "seed", -1, "greater than or equal to 0"),
    (TRAINING + "seed", 2**32, "less than 4294967296"),
    (LORA + "lora_r", 0, POSITIVE),
    (LORA + "lora_r", 16.5, "valid integer"),
    (LORA + "lora_r", True, NUMBER),
    (LORA + "lora_alpha", -16, POSITIVE),
    (LORA + "lora_dropout", 1, "less than 1"),
    (LORA + "lora_dropout", -0.1, "greater than or equal to 0"),
    (LORA + "bias", "all", "should be 'none'"),
    (LORA + "target_modules", [], "at least 1 item"),
    (LORA + "target_modules", "q_proj", "Input should be a list"),
    (LORA + "target_modules", ["q_proj", ""], "at least 1 character"),
    (LORA + "target_modules", ["q_proj", 3], "valid string"),
    (LORA + "use_rslora", "often", "valid boolean"),
    (LORA + "seed", -3407, "greater than or equal to 0"),
    ("sft.max_seq_length", 0, POSITIVE),
    ("sft.over_long", "keep", "'cut' or 'drop'"),
    ("sft.eval_fraction", 1, "less than 1"),
    ("sft.eval_fraction", -0.1, "greater than or equal to 0"),
    ("sft.checkpoint_dir", "", "at least 1 character"),
    ("sft.backend", "trl", "'unsloth' or 'peft'"),
    ("sft.gpu.devices", 2, "backend 'unsloth' trains on one"),
    ("data_filtering.language_percent_min", 101, "less than or equal to 100"),
    ("data_filtering.extra_rules", ["citation"], "'token_count', 'citation_mark'"),
    ("data_filtering.near_duplicate_jaccard_min", float("nan"), FINITE),
    ("data_filtering.bad_records_max", False, NUMBER),
    ("quantization.quant_type", "int4", "'nf4' or 'fp4'"),
    ("quantization.compute_dtype", "bf16", "'bfloat16', 'float16' or 'float32'"),
    ("quantization.perplexity_max_tokens", -1, "greater than or equal to 0"),
    (
        "quantization.chat_template",
        "{% for m in messages %}{{ m }}",
        "not a Jinja template: line 1",
    ),
    ("quantization.chat_template", "{{ messages[0 }}", "not a Jinja template: line 1"),
    ("rag_index.retriever", "tfidf", "'colbert', 'bm25' or 'hybrid'"),
    ("rag_index.batch_size", 0, "greater than or equal to 1"),
    ("rag_index.max_document_tokens", 2, "greater than or equal to 4"),
    ("inference.top_k", -1, "greater than or equal to 0"),
    ("inference.repetition_penalty", 0, POSITIVE),
    ("inference.repetition_penalty", float("inf"), FINITE),
    ("inference.example_diversity", 1.5, "less than or equal to 1"),
    ("inference.bad_words", ["###", ""], "must not contain an empty string"),
    ("inference.batching.max_num_seqs", 0, "greater than or equal to 1"),
    ("inference.gpu.memory_gb", 0, POSITIVE),
    ("export.gguf_outtype", "q4_k_m", "'f32', 'f16', 'bf16' or 'q8_0'"),
    ("publishing.commit_message", "", "at least 1 character"),
    ("prompts.task_prompt", '{"answer": "…"} {input}', "write {{ and }} for braces"),
]

ACCEPTED = [
    # YAML 1.1 reads a number without a dot before its exponent as text
    (TRAINING + "learning_rate", "2e-4"),
    (TRAINING + "optim", "paged_adamw_8bit"),
    (TRAINING + "report_to", "wandb"),
    (TRAINING + "report_to", "none"),
    (TRAINING + "report_to", ["mlflow", "tensorboard"]),
    (TRAINING + "max_steps", 1),
    (TRAINING + "neftune_noise_alpha", 0),
    (
        "quantization.chat_template",
        "{% for m in messages %}{% generation %}{{ m }}{% continue %}"
        "{% endgeneration %}{% endfor %}",
    ),
]

SCHEDULES_WITH_WRONG_ARGUMENTS = [
    ("inverse_sqrt", {"timescale": 0}, "timescale = 0, which must be above 0"),
    ("cosine", {"num_cycles": "two"}, "lr_scheduler_kwargs.num_cycles = 'two': must be a number"),
    ("cosine", {"num_cycles": True}, "lr_scheduler_kwargs.num_cycles = True: must be a number"),
    ("cosine", {"cycles": 2}, "lr_scheduler_kwargs.cycles: lr_scheduler_type 'cosine' has the arg"),
    ("inverse_sqrt", {"timescale": float("nan")}, "finite number"),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 9, "decay_type": "sqrt"},
        "lr_scheduler_kwargs.decay_type = 'sqrt': must be linear or cosine or 1-sqrt",
    ),
    ("polynomial", {"lr_end": 0.1}, "lr_scheduler_kwargs.lr_end = 0.1, which must be below learn"),
]


@pytest.fixture(scope="module")
def check(read_parameters):
    configure_project("ja_instruct")
    base = dict(read_parameters("base"))

    def check_with(key, value):
        sections = deepcopy(base)
        *path, last = key.split(".")
        place = sections
        for part in path:
            place = place[part]
        assert last in place
        place[last] = value
        context = SimpleNamespace(config_loader={"parameters": sections}, env=None)
        check_parameters(context)

    return check_with


@pytest.mark.parametrize(("key", "value", "words"), REFUSED)
def test_refused_with_key_and_reason(check, key, value, words):
    with pytest.raises(InputError) as caught:
        check(key, value)
    (problem,) = str(caught.value).splitlines()[1:-1]
    assert words in problem
    # a reason that is a combination names its section and the other keys
    section, _, name = key.rpartition(".")
    assert f"'{key}" in problem or (f"'{section.partition('.')[0]}" in problem and name in problem)
    assert len(problem) < 600


@pytest.mark.parametrize(("name", "arguments", "words"), SCHEDULES_WITH_WRONG_ARGUMENTS)
def test_schedule_with_wrong_arguments(read_parameters, name, arguments, words):
    values = read_parameters("base")["sft"]["training"]
    values |= {"lr_scheduler_type": name, "lr_scheduler_kwargs": arguments}
    with pytest.raises(ValidationError) as caught:
        TrainingParameters(**values)
    assert words in "; ".join(explain_errors(caught.value, TrainingParameters, "sft.training"))


@pytest.mark.parametrize(("key", "value"), ACCEPTED)
def test_accepted(check, key, value):
    check(key, value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"parameters.yml": b"sft: {resume: true}", "parameters_sft.yml": b"sft: {resume: no}"},
            "Duplicate keys found in .*sft.resume",
        ),
        ({"parameters.yml": b"sft: {checkpoint_dir: '${globals:run_nam}'}"}, "run_nam"),
        ({"parameters.yml": "sft: {checkpoint_dir: 学習}".encode("cp932")}, "can't decode|utf-8"),
        ({"parameters.yml": b"sft: {resume: true"}, "not valid YAML.*parameters.yml"),
    ],
    ids=["same key twice", "unknown interpolation", "not UTF-8", "not YAML"],
)
def test_files_that_cannot_be_read(tmp_path, files, words):
    for folder in ("base", "mine"):
        (tmp_path / folder).mkdir()
    for name, content in files.items():
        (tmp_path / "mine" / name).write_bytes(content)
    loader = CONFIG_LOADER_CLASS(str(tmp_path), env="mine", **CONFIG_LOADER_ARGS)
    with pytest.raises(InputError, match=f"(?s)^(the|a) parameter file.*{words}"):
        check_parameters(SimpleNamespace(config_loader=loader, env="mine"))
