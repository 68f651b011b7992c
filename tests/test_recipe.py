"""``conf/base`` is the recipe: the recipe's settings are repeated here, and its texts compared."""

import json

import pytest
import yaml

GPU = {"devices": None, "memory_gb": None, "disk_gb": None}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SECTIONS = {
    "data_filtering": {
        "multi_turn": "first",
        "system_turns": "drop",
        "assistant_first": "pair",
        "rare_char_count_max": 19,
        "survivor_char_count_min": 10,
        "language": "ja",
        "language_percent_min": 60,
        # beyond the recipe: without an extra rule its settings are unused
        "bad_records_max": 0,
        "extra_rules": [],
        "response_tokens_min": 1,
        "pair_tokens_max": 2000,
        "repeated_sentence_percent_max": 30,
        "repeated_ngram_percent_max": 60,
        "repeated_ngram_letters_min": 300,
        "han_chars_without_kana_max": 20,
        "foreign_han_chars_without_kana_max": 12,
        "contamination_ngram_chars": 25,
        "contamination_share_min": 0.5,
        "contamination_stock_texts_max": 5,
        "near_duplicate_jaccard_min": 0.6,
    },
    "quantization": {
        "device": "cuda",
        "quant_type": "nf4",
        "double_quantization": True,
        "load_dtype": "float16",
        "compute_dtype": "bfloat16",
        # beyond the recipe: the weights are the same
        "perplexity_max_tokens": 20000,
        "gpu": GPU,
    },
    "sft": {
        "backend": "unsloth",
        "device": "cuda",
        "max_seq_length": 2048,
        "completion_only_loss": False,
        "eval_fraction": 0,
        "over_long": "cut",
        "resume": True,
        "gpu": GPU,
        "lora": {
            "lora_r": 64,
            "lora_alpha": 64,
            "lora_dropout": 0,
            "bias": "none",
            "target_modules": LINEAR_LAYERS,
            "use_rslora": False,
            "seed": 3407,
        },
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 8,
            "num_train_epochs": 2,
            "max_steps": -1,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "linear",
            "lr_scheduler_kwargs": {},
            "warmup_steps": 300,
            "optim": "adamw_8bit",
            "weight_decay": 0.01,
            "bf16": True,
            "neftune_noise_alpha": 5,
            "auto_find_batch_size": True,
            "gradient_checkpointing": True,
            "packing": False,
            "tokens_per_batch": None,
            "logging_steps": 5,
            "save_strategy": "steps",
            "save_steps": 300,
            "save_total_limit": 10,
            "report_to": ["mlflow"],
            "seed": 3407,
            # the recipe evaluates nothing
            "eval_strategy": "no",
            "eval_steps": 300,
            "per_device_eval_batch_size": 4,
            "early_stopping_patience": None,
            "early_stopping_threshold": 0.0,
            # stops a training that has failed
            "divergence_nats": 1.0,
        },
    },
    # whole questions are encoded
    "rag_index": {"retriever": "colbert", "batch_size": 32, "max_document_tokens": None},
    "inference": {
        # the same greedy answers as those of the recipe's unsloth, in batches
        "backend": "transformers",
        "engine": "batched",
        "batching": {
            "max_num_seqs": None,
            "weights": "auto",
            "kv_cache_dtype": "auto",
            "memory_gb": None,
            "prefill_chunk_size": None,
            "cuda_graphs": True,
        },
        "device": "cuda",
        "top_k": 20,
        "max_seq_length": 4096,
        "max_new_tokens": 1024,
        "repetition_penalty": 1.1,
        "bad_words": ["質問", "###", "#", "##", "---", "<h3>", "filepath", "> "],
        # RAGatouille's own choice, and no answers beside those to the tasks
        "max_query_tokens": None,
        "compare_tasks": 0,
        # few-shot examples, penalty and bad words as in the original
        "exclude_same_task": False,
        "example_diversity": None,
        "fit_prompt": False,
        "penalty_on": "prompt_and_answer",
        "penalty_spares_end": False,
        "bad_words_in": "tokens",
        # how a run ends, not what it answers
        "fail_on_failed_tasks": True,
        "cut_off_is_failure": False,
        "gpu": GPU,
    },
    # beyond the recipe, which ends with the answers
    "export": {"gguf_outtype": "bf16"},
    "publishing": {"commit_message": "Upload by ja-instruct"},
}
# compared with the recipe's texts, or free for each user
ELSEWHERE = {"quantization": {"chat_template"}, "sft": {"checkpoint_dir", "model_card"}}


@pytest.fixture(scope="module")
def base(read_parameters):
    return read_parameters("base")


@pytest.fixture(scope="module")
def texts(recipe):
    return json.loads((recipe / "prompts.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def catalog(read_configuration):
    return read_configuration("base")["catalog"]


def test_sources(catalog):
    assert catalog["base_model"]["repo_id"] == "google/gemma-2-27b"
    assert catalog["raw_conversations"]["dataset_name"] == "llm-jp/magpie-sft-v1.0"
    assert catalog["qa_pairs"]["dataset_name"] == "tomo1222/Japanese-QA111dataset"
    assert catalog["retriever_checkpoint"]["repo_id"] == "bclavie/JaColBERTv2"


@pytest.mark.parametrize("section", SECTIONS)
def test_section(base, section):
    elsewhere = ELSEWHERE.get(section, set())
    assert elsewhere <= set(base[section])
    compared = {key: value for key, value in base[section].items() if key not in elsewhere}
    assert compared == SECTIONS[section]


def test_sections(base):
    assert set(base) == {*SECTIONS, "prompts", "freshness"}


def test_texts(base, texts):
    assert base["quantization"]["chat_template"] == texts["chat_template"]
    assert base["inference"]["bad_words"] == texts["bad_words"]
    assert base["prompts"]["format"] == "recipe"
    for name in ("train_prompt", "few_shot_header", "few_shot_example", "task_prompt"):
        assert base["prompts"][name].encode() == texts[name].encode(), name


@pytest.mark.parametrize(
    "name", ["replacements", "banned_substrings", "banned_instruction_substrings"]
)
def test_word_lists(pytestconfig, catalog, recipe, name):
    path = pytestconfig.rootpath / catalog[name]["filepath"]
    expected = []
    if name != "banned_instruction_substrings":
        expected = json.loads((recipe / f"{name}.json").read_text("utf-8"))
    assert yaml.safe_load(path.read_text("utf-8")) == expected


def test_nothing_is_published_by_default(catalog):
    entries = [entry for name, entry in catalog.items() if name.startswith("published_")]
    assert [(entry["repo_id"], entry["private"]) for entry in entries] == [(None, True)] * 3
