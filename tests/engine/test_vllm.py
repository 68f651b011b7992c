"""vLLM is not installed where these tests run: a module stands in for it.

Tests compare all arguments, whose names are those of vllm 0.32.0.
"""

import json
import shutil
import sys
from collections import namedtuple
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gemma_shapes import base_model_in
from kedro.io import DataCatalog, MemoryDataset

from ja_instruct.engine import vllm as vllm_engine
from ja_instruct.engine.backends import load_engine
from ja_instruct.engine.vllm import VllmEngine, require_vllm
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.inference import create_pipeline
from ja_instruct.pipelines.inference.answering import answer_all, answer_keys
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.tables.answer_store import AnswerStore

PROMPTS = ["日本の首都は", "春", "富士山の高さを教えてください。\n\n"]
GB = 10**9


class VLLMError(Exception):
    """``vllm.exceptions``: none of these is a ``ValueError``."""


class VLLMClientError(VLLMError):
    pass


class EngineDeadError(VLLMError):
    pass


LoRARequest = namedtuple("LoRARequest", "lora_name lora_int_id lora_path")


@dataclass
class Vllm:
    """What the stand-in gets, and what it answers."""

    answers: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    dies_after: int | None = None
    arguments: list[dict[str, Any]] = field(default_factory=list)
    requests: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    shutdowns: int = 0

    def start(self, model: str, **kwargs: Any) -> SimpleNamespace:
        self.arguments.append({"model": model, **kwargs})
        self._running: dict[str, list[int]] = {}
        return SimpleNamespace(llm_engine=self)

    @property
    def engine_core(self):
        return self

    def shutdown(self, timeout: float | None = None) -> None:
        self.shutdowns += 1

    def add_request(
        self,
        request_id: str,
        prompt: dict[str, Any],
        params: SimpleNamespace,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
    ) -> str:
        assert isinstance(request_id, str)
        assert prompt["type"] == "token"
        ids = prompt["prompt_token_ids"]
        if not ids:
            raise VLLMClientError("The decoder prompt cannot be empty")
        if len(ids) >= self.arguments[-1]["max_model_len"]:
            raise VLLMClientError(f"The decoder prompt (length {len(ids)}) is longer than")
        assert request_id not in self._running
        self.requests[request_id] = (ids, params, lora_request)
        self._running[request_id] = self.answers[int(request_id)]
        return f"{request_id}-1a2b3c4d"

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> list[SimpleNamespace]:
        """Give every answer a token more, and return those that are whole, after one that is not.

        ``FINAL_ONLY`` keeps the latter back, but vLLM's own loop looks at ``finished`` as well.
        """
        if self.steps == self.dies_after:
            raise EngineDeadError("EngineCore encountered an issue")
        self.steps += 1
        outputs = [SimpleNamespace(request_id="0", finished=False, outputs=[])]
        for name, ids in list(self._running.items()):
            if len(ids) <= self.steps:
                reason = self.reasons.get(int(name), "stop")
                answer = SimpleNamespace(token_ids=self._running.pop(name), finish_reason=reason)
                outputs.append(SimpleNamespace(request_id=name, finished=True, outputs=[answer]))
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, installed, on a GPU of 80 GB of which 70 GB are free."""
    fake = Vllm()
    kinds = SimpleNamespace(FINAL_ONLY="FINAL_ONLY")
    modules = {
        "vllm": {"LLM": fake.start, "SamplingParams": SimpleNamespace},
        "vllm.exceptions": {"VLLMClientError": VLLMClientError},
        "vllm.inputs": {"tokens_input": tokens_input},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": kinds},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GB, 80 * GB))
    return fake


def tokens_input(prompt_token_ids, *, prompt=None, cache_salt=None):
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


@pytest.fixture
def change(read_parameters):
    """A function that returns base's parameters with vLLM, and with changes."""
    section = read_parameters("base")["inference"]

    def changed(batching=(), **changes):
        batching = {**section["batching"], **dict(batching)}
        return InferenceParameters(
            **{**section, "backend": "vllm", "batching": batching, "max_new_tokens": 12, **changes}
        )

    return changed


@pytest.fixture
def adapter(tmp_path):
    def write(**config):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return ModelDirectory(tmp_path, "adapter")

    return write


@pytest.fixture
def said(vllm, tiny_nf4):
    """The answers' ids, the second the shortest; the last without an end."""
    tokenizer = tiny_nf4.load_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    end = tokenizer.eos_token_id
    vllm.answers = {0: [*ids[0], *ids[1], end], 1: [*ids[1], end], 2: (ids[2] * 12)[:12]}
    vllm.reasons = {2: "length"}
    return [
        tokenizer.decode(vllm.answers[one], skip_special_tokens=True).strip() for one in (0, 1, 2)
    ]


@pytest.fixture
def answer(said, tiny_nf4, change):
    """A function that answers prompts with base's parameters and changes."""

    def call(*batching, prompts=PROMPTS, adapter=None, **changes):
        return dict(load_engine(tiny_nf4, adapter, change(*batching, **changes)).generate(prompts))

    return call


def test_answers_are_yielded_as_they_end(vllm, said, tiny_nf4, change):
    engine = load_engine(tiny_nf4, None, change())
    assert isinstance(engine, VllmEngine)
    assert not vllm.arguments, "nobody knows the prompts yet"
    answers = engine.generate(PROMPTS)
    first, answer = next(answers)
    assert (first, answer.text, answer.finished) == (1, said[1], True)
    assert vllm.steps == len(vllm.answers[1]), "the others have not been waited for"
    rest = dict(answers)
    assert set(rest) == {0, 2}
    assert [rest[one].text for one in (0, 2)] == [said[0], said[2]]
    assert [rest[one].finished for one in (0, 2)] == [True, False]
    tokenizer = tiny_nf4.load_tokenizer()
    for position, one in {1: answer, **rest}.items():
        ids = tokenizer(PROMPTS[position])["input_ids"]
        assert vllm.requests[str(position)][0] == ids
        assert (one.prompt_tokens, one.new_tokens) == (len(ids), len(vllm.answers[position]))
        assert one.seconds >= 0
    assert vllm.shutdowns == 1


def test_vllm_gets_the_parameters(vllm, answer, tiny_nf4):
    answer()
    tokenizer = tiny_nf4.load_tokenizer()
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    (found,) = vllm.arguments
    assert found == {
        "model": str(tiny_nf4.path),
        "quantization": "bitsandbytes",
        "load_format": "bitsandbytes",
        "dtype": "bfloat16",
        "max_model_len": longest + 12,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 1024,
        "enable_chunked_prefill": True,
        # free but for vLLM's own context, with a margin
        "gpu_memory_utilization": pytest.approx(0.95 * 69.4 / 80),
        "enforce_eager": False,
    }
    settings = SimpleNamespace(
        temperature=0.0,
        repetition_penalty=1.1,
        max_tokens=12,
        stop_token_ids=[tokenizer.eos_token_id],
        bad_words=["質問", "###", "#", "##", "---", "<h3>", "filepath", "> "],
        detokenize=False,
        output_kind="FINAL_ONLY",
    )
    assert [request[1:] for request in vllm.requests.values()] == [(settings, None)] * 3


def test_vllm_stops_where_training_and_the_model_end(vllm, said, tiny_nf4, change, tmp_path):
    copy = shutil.copytree(tiny_nf4.path, tmp_path / "model")
    (copy / "generation_config.json").write_text('{"eos_token_id": [1, 4]}', "utf-8")
    vllm.answers[1][-1] = 4
    model = replace(tiny_nf4, path=copy)
    engine = load_engine(model, None, change(), stop_at_end_of_turn=True)
    answers = dict(engine.generate(PROMPTS))
    turn = tiny_nf4.load_tokenizer().convert_tokens_to_ids("<end_of_turn>")
    assert vllm.requests["0"][1].stop_token_ids == [1, turn, 4]
    assert [answers[position].finished for position in range(3)] == [True, True, False]


def test_vllm_gets_the_batching_parameters(vllm, answer):
    answer({"max_num_seqs": 2, "prefill_chunk_size": 1, "cuda_graphs": False, "memory_gb": 20.0})
    (found,) = vllm.arguments
    assert (found["max_num_seqs"], found["enforce_eager"]) == (2, True)
    # a step gives every sequence at least one token
    assert found["max_num_batched_tokens"] == 2
    assert found["gpu_memory_utilization"] == pytest.approx(20 / 80)


@pytest.mark.parametrize(
    ("batching", "whole", "expected"),
    [
        # the context counts to the whole, not to the section's own limit
        (None, 30.6, 30 / 80),
        (20.0, 30.6, 20 / 80),
        # more than is free: vLLM would refuse to start
        (78.0, None, 0.95 * 69.4 / 80),
    ],
)
def test_memory_is_limited(vllm, answer, batching, whole, expected):
    answer({"memory_gb": batching}, gpu={"devices": None, "memory_gb": whole, "disk_gb": None})
    assert vllm.arguments[0]["gpu_memory_utilization"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"r": 64}, 64),
        ({"r": 4, "rank_pattern": None}, 8),
        ({"r": 65, "rank_pattern": {}}, 128),
        ({"r": 8, "rank_pattern": {"q_proj": 300}}, 320),
    ],
)
def test_every_prompt_uses_the_adapter(vllm, answer, adapter, config, most):
    found = adapter(**config)
    answer()
    answer(adapter=found)
    without, arguments = vllm.arguments
    added = {"enable_lora": True, "max_loras": 1, "max_lora_rank": most}
    assert arguments == {**without, **added}
    for _, _, request in vllm.requests.values():
        assert request.lora_path == str(found.path)
        assert request.lora_int_id > 0


def test_unsupported_rank_is_refused_at_once(vllm, tiny_nf4, change, adapter):
    with pytest.raises(InputError, match=r"adapter_config.json: the adapter's rank is 513"):
        load_engine(tiny_nf4, adapter(r=513), change())


def test_prompts_that_vllm_refuses_fail_alone(vllm, said, answer, tiny_nf4, monkeypatch):
    monkeypatch.setattr(
        type(tiny_nf4), "load_config", lambda model: {"max_position_embeddings": 40}
    )
    vllm.answers[3] = vllm.answers[1]
    answers = answer(prompts=[*PROMPTS[:2], "山" * 50, PROMPTS[1]])
    assert vllm.arguments[0]["max_model_len"] == 40
    assert set(answers) == {0, 1, 2, 3}
    assert answers[2].error.startswith("VLLMClientError: The decoder prompt (length ")
    assert [answers[one].text for one in (0, 1, 3)] == [said[0], said[1], said[1]]
    assert not any(answers[one].error for one in (0, 1, 3))


def test_aborted_request_has_its_reason(vllm, said, answer):
    vllm.reasons[0] = "error"
    answers = answer()
    assert answers[0].error == "RuntimeError: vLLM ended the answer with 'error'"
    assert answers[1].text == said[1]


def test_no_prompts_start_nothing(vllm, answer):
    assert answer(prompts=[]) == {}
    assert not vllm.arguments


def test_answers_before_vllm_dies_are_kept(vllm, said, tiny_nf4, change, texts, tmp_path):
    parameters = change()
    tasks = [{"input": prompt, "prompt": prompt} for prompt in PROMPTS]
    keys = answer_keys(PROMPTS, tiny_nf4, None, parameters, texts)
    path = tmp_path / "answers.jsonl"

    def run():
        load = partial(load_engine, tiny_nf4, None, parameters)
        return answer_all(tasks, keys, AnswerStore(path), load, "")

    vllm.dies_after = len(vllm.answers[1])
    with pytest.raises(EngineDeadError):
        run()
    assert vllm.shutdowns == 1
    assert set(vllm.requests) == {"0", "1", "2"}
    # the next run asks for the other two
    vllm.answers = {0: vllm.answers[0], 1: vllm.answers[2]}
    vllm.reasons = {1: "length"}
    vllm.dies_after, vllm.steps = None, 0
    vllm.requests.clear()
    assert [answer.text for answer in run()] == said
    assert set(vllm.requests) == {"0", "1"}


def test_vllm_shuts_down_when_the_generator_is_closed(vllm, said, tiny_nf4, change):
    answers = load_engine(tiny_nf4, None, change()).generate(PROMPTS)
    next(answers)
    answers.close()
    assert vllm.shutdowns == 1


def test_answers_of_another_backend_are_not_reused(tiny_nf4, change, texts):
    batching = {"max_num_seqs": 3, "memory_gb": 9.0, "prefill_chunk_size": 7, "cuda_graphs": False}
    keys = [
        answer_keys(["春"], tiny_nf4, None, parameters, texts)
        for parameters in (change(), change(backend="transformers"), change(batching))
    ]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_missing_package_is_named(monkeypatch, tiny_nf4, change):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'vllm' and 'vllm_bnb_plugin' not installed; pip"):
        load_engine(tiny_nf4, None, change())
    # vLLM itself does not read 4-bit weights
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: name if name == "vllm" else None)
    with pytest.raises(InputError, match=r"'vllm_bnb_plugin' not .*'ja-instruct\[vllm\]'"):
        require_vllm()


def resources(parameters, base_model):
    (node,) = (one for one in create_pipeline().nodes if one.name == "answer_with_base_model")
    sections = {"params:inference": MemoryDataset(parameters), "base_model": base_model}
    return node.func.gpu_resources(node, DataCatalog(sections))


def test_missing_package_is_reported_before_a_run(monkeypatch, change, tmp_path):
    base_model = base_model_in(tmp_path)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"inference\.backend 'vllm'"):
        resources(change(), base_model)
    assert resources(change(backend="transformers"), base_model)["devices"] == 1
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: name)
    assert resources(change(), base_model)["devices"] == 1


def test_memory_includes_vllms_unpacked_constants(vllm, change, tmp_path):
    base_model = base_model_in(tmp_path)
    plain, found = (
        resources(change(backend=backend), base_model)["parts_gb"]
        for backend in ("transformers", "vllm")
    )
    # Gemma-2-27b has 26 billion weights in 4 bits, and for each 64 of them a constant in 32 bits;
    # otherwise one that is quantized in turn, and one in 16 bits for the kernel
    bits = 32 / 64 - (0.127 + 16 / 64)
    assert found["weights"] - plain["weights"] == pytest.approx(26.05 * bits / 8, 0.01)
    assert found["kv_cache"] == plain["kv_cache"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cpu"}, "backend 'vllm' needs device 'cuda'"),
        ({"engine": "one_by_one"}, "set engine: batched, or backend: transformers"),
        ({"penalty_on": "answer"}, "does not support penalty_on: answer; change"),
        ({"penalty_spares_end": True}, "does not support penalty_spares_end: true"),
        ({"bad_words_in": "text"}, "does not support bad_words_in: text"),
        ({"batching": {"weights": "bf16"}}, "does not support batching.weights: bf16"),
        ({"batching": {"kv_cache_dtype": "int8"}}, "not support batching.kv_cache_dtype: int8"),
        (
            {"penalty_on": "answer", "bad_words_in": "text"},
            "does not support penalty_on: answer, bad_words_in: text",
        ),
    ],
)
def test_unsupported_settings_are_refused_at_once(change, changes, message):
    with pytest.raises(ValueError, match=message):
        change(**changes)


def test_bad_words_in_text_without_words_is_accepted(change):
    assert change(bad_words=(), bad_words_in="text").backend == "vllm"
