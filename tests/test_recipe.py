"""``conf/base`` is the recipe: every figure is spelled out here once more."""

import json

import pytest
import yaml

NO_GPU_SETTINGS = {"devices": None, "memory_gb": None, "disk_gb": None}


@pytest.fixture(scope="module")
def base(read_parameters):
    return read_parameters("base")


@pytest.fixture(scope="module")
def texts(recipe):
    return json.loads((recipe / "prompts.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def catalog(read_configuration):
    return read_configuration("base")["catalog"]


def read_word_list(pytestconfig, catalog, name):
    path = pytestconfig.rootpath / catalog[name]["filepath"]
    return yaml.safe_load(path.read_text("utf-8"))


def test_base_model_is_googles_own_16_bit_weights(catalog):
    assert catalog["base_model"]["repo_id"] == "google/gemma-2-27b"


def test_sources(catalog):
    assert catalog["raw_conversations"]["dataset_name"] == "llm-jp/magpie-sft-v1.0"
    assert catalog["qa_pairs"]["dataset_name"] == "tomo1222/Japanese-QA111dataset"
    assert catalog["retriever_checkpoint"]["repo_id"] == "bclavie/JaColBERTv2"


def test_quantization(base):
    settings = {key: base["quantization"][key] for key in base["quantization"]}
    del settings["chat_template"]
    assert settings == {
        "device": "cuda",
        "quant_type": "nf4",
        "double_quantization": True,
        "compute_dtype": "bfloat16",
        # beyond the recipe: the weights are the same
        "perplexity_max_tokens": 20000,
        # estimated
        "gpu": NO_GPU_SETTINGS,
    }


def test_chat_template(base, texts):
    assert base["quantization"]["chat_template"] == texts["chat_template"]


def test_data_filtering(base):
    assert base["data_filtering"] == {
        "rare_char_count_max": 19,
        "survivor_char_count_min": 10,
        "language": "ja",
        "language_percent_min": 60,
        # beyond the recipe: nothing is asked for, and figures without their rules mean nothing
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
    }


def test_word_lists(pytestconfig, catalog, recipe):
    for name in ("replacements", "banned_substrings"):
        expected = json.loads((recipe / f"{name}.json").read_text("utf-8"))
        assert read_word_list(pytestconfig, catalog, name) == expected
    assert read_word_list(pytestconfig, catalog, "banned_instruction_substrings") == []


def test_sft(base):
    sft = base["sft"]
    assert sft["backend"] == "unsloth"
    assert sft["device"] == "cuda"
    assert sft["max_seq_length"] == 2048
    assert sft["completion_only_loss"] is False
    assert sft["eval_fraction"] == 0
    assert sft["over_long"] == "cut"
    assert sft["resume"] is True
    assert sft["gpu"] == NO_GPU_SETTINGS


def test_lora(base):
    assert base["sft"]["lora"] == {
        "lora_r": 64,
        "lora_alpha": 64,
        "lora_dropout": 0,
        "bias": "none",
        "target_modules": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        "use_rslora": False,
        "seed": 3407,
    }


def test_training(base):
    assert base["sft"]["training"] == {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 2,
        "max_steps": -1,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 300,
        "optim": "adamw_8bit",
        "weight_decay": 0.01,
        "bf16": True,
        "neftune_noise_alpha": 5,
        "auto_find_batch_size": True,
        "gradient_checkpointing": True,
        "packing": False,
        # padded batches, as they come
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
        # ends a training that has failed, changes none
        "divergence_nats": 1.0,
    }


def test_retrieval_encodes_whole_questions(base):
    assert base["rag_index"]["retriever"] == "colbert"
    assert base["rag_index"]["max_document_tokens"] is None


def test_inference(base):
    assert base["inference"] == {
        # the same greedy answers as from the recipe's unsloth, many at a time
        "backend": "transformers",
        "engine": "batched",
        "batching": {
            "max_num_seqs": None,
            "weights": "auto",
            # keys and values as the model computes them
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
        # RAGatouille's own choice, and nothing beside the tasks
        "max_query_tokens": None,
        "compare_tasks": 0,
        # shots, penalty and bad words as the original has them
        "exclude_same_task": False,
        "example_diversity": None,
        "fit_prompt": False,
        "penalty_on": "prompt_and_answer",
        "penalty_spares_end": False,
        "bad_words_in": "tokens",
        # how a run ends, not what it answers
        "fail_on_failed_tasks": True,
        "cut_off_is_failure": False,
        "gpu": NO_GPU_SETTINGS,
    }


def test_bad_words(base, texts):
    assert base["inference"]["bad_words"] == texts["bad_words"]


@pytest.mark.parametrize(
    "name", ["train_prompt", "few_shot_header", "few_shot_example", "task_prompt"]
)
def test_prompts(base, texts, name):
    assert base["prompts"][name].encode() == texts[name].encode()


def test_prompt_of_inference_is_its_own(base):
    assert base["prompts"]["format"] == "recipe"


def test_export(base):
    """Beyond the recipe, which ends with the answers."""
    assert base["export"] == {"gguf_outtype": "bf16"}


def test_publishing(base, catalog):
    assert base["publishing"] == {"commit_message": "Upload by ja-instruct"}
    entries = [entry for name, entry in catalog.items() if name.startswith("published_")]
    assert [(entry["repo_id"], entry["private"]) for entry in entries] == [(None, True)] * 3


def test_no_other_section(base):
    sections = {"data_filtering", "quantization", "sft", "rag_index", "inference", "prompts"}
    assert set(base) == {*sections, "export", "publishing"}
