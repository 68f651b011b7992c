import math
import sys
import types

import pytest
import torch

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft import training
from ja_instruct.pipelines.sft.micro_batches import packed
from ja_instruct.pipelines.sft.packed_attention import (
    TransformersPacking,
    UnslothPacking,
    backbone_of,
    block_mask,
    document_ids,
    require_separate_samples,
    softcap_attention,
)

PACKED = {"tokens_per_batch": 4000, "packing": True}


class RunningOn(TransformersPacking):
    """Packing without separation: one long sample."""

    def begin(self, row):
        tokens = row["input_ids"].shape[1]
        return {**super().begin(row), "position_ids": torch.arange(tokens)[None]}


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(**PACKED)


@pytest.fixture
def sequences(trainer):
    """Token ids of two samples, both longer than the window of the tiny model's first layer."""
    ids = sorted(trainer.train_dataset["input_ids"], key=len)
    assert len(ids[-2]) > 64
    return [torch.tensor(one) for one in ids[-2:]]


class TestSeparation:
    def test_transformers_keeps_samples_apart(self, trainer, sequences):
        assert require_separate_samples(trainer.model, sequences, TransformersPacking()) < 1e-5

    def test_positions_that_run_on_are_detected(self, trainer, sequences):
        message = r"differ by [1-9]\d*\.\d%.*set sft\.training\.packing to false"
        with pytest.raises(InputError, match=message):
            require_separate_samples(trainer.model, sequences, RunningOn())

    @pytest.mark.parametrize("mode", [True, False])
    def test_does_not_change_the_model(self, trainer, sequences, mode):
        trainer.model.train(mode)
        before = torch.random.get_rng_state()
        require_separate_samples(trainer.model, sequences, TransformersPacking())
        assert trainer.model.training is mode
        assert all(weight.grad is None for weight in trainer.model.parameters())
        assert torch.random.get_rng_state().equal(before)

    def test_hidden_states_that_are_not_finite_are_refused(self, trainer, sequences):
        with torch.no_grad():
            next(one for one in trainer.model.parameters() if one.requires_grad).fill_(math.nan)
        with pytest.raises(InputError, match="packed samples would attend to each other"):
            require_separate_samples(trainer.model, sequences, TransformersPacking())

    def test_is_checked_before_a_training_with_packing(self, make_trainer, monkeypatch):
        monkeypatch.setattr(training, "TransformersPacking", RunningOn)
        with pytest.raises(InputError, match=r"set sft\.training\.packing to false"):
            make_trainer(**PACKED)
        assert make_trainer(tokens_per_batch=4000).packing is None


class TestOneSamplesLoss:
    """The loss of the second sample in a row must not depend on the first."""

    @pytest.fixture
    def loss_of_second(self, trainer, sequences):
        first, second = ({"input_ids": ids, "labels": ids} for ids in sequences)
        first["labels"] = torch.full_like(first["labels"], -100)
        trainer.model.train()

        def compute(packing):
            row = packing.begin(packed([first, second], 0))
            return trainer.compute_loss(trainer.model, row, num_items_in_batch=1)

        return compute

    @pytest.mark.parametrize("packing", [TransformersPacking(), RunningOn()])
    def test_has_no_gradient_in_the_first(self, trainer, sequences, loss_of_second, packing):
        embedded = []

        def keep(module, inputs, output):
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        handle = trainer.model.get_base_model().get_input_embeddings().register_forward_hook(keep)
        loss_of_second(packing).backward()
        handle.remove()
        length = len(sequences[0])
        (gradient,) = embedded[0].grad
        assert gradient[length:].abs().max() > 1e-3
        apart = not isinstance(packing, RunningOn)
        assert bool((gradient[:length] == 0).all()) is apart


LENGTHS = (70, 3, 100, 83)  # 256 tokens; the last is what fills the row up


def reference_attention(query, key, value, *, scale, softcap, window):
    """Return attention within each sample from the full matrix of scores."""
    shared = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
    parts = []
    for q, k, v in zip(*(one.split(LENGTHS, dim=2) for one in (query, key, value)), strict=True):
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
        places = torch.arange(q.shape[2])
        distance = places[:, None] - places[None]
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        parts.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v)
    return torch.cat(parts, dim=2)


def heads(number, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1, number, sum(LENGTHS), 16, generator=generator)


class TestSoftcapAttention:
    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    @pytest.mark.parametrize("window", [None, 8, 64])
    @pytest.mark.parametrize("key_heads", [1, 2, 4])
    def test_equals_that_of_each_sample_alone(self, window, key_heads):
        inputs = heads(4, 3, 1), heads(key_heads, 3, 2), heads(key_heads, 1, 3)
        documents = document_ids(torch.tensor(LENGTHS), torch.device("cpu"))
        settings = {"scale": 0.3, "softcap": 5.0}
        mask = block_mask(documents, window or sum(LENGTHS))
        found = softcap_attention(*inputs, mask, **settings)
        expected = reference_attention(*inputs, **settings, window=window)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # each of bound, window and boundaries matters here
        unbounded = reference_attention(*inputs, scale=0.3, softcap=1e6, window=window)
        assert (unbounded - expected).abs().max() > 0.1

    def test_blocks_without_attention_are_skipped(self):
        documents = document_ids(torch.tensor([128] * 8), torch.device("cpu"))
        assert block_mask(documents, len(documents)).sparsity() == pytest.approx(100 * (1 - 8 / 64))


def test_document_ids():
    found = document_ids(torch.tensor([2, 1, 3], dtype=torch.int32), torch.device("cpu"))
    assert found.tolist() == [0, 0, 1, 2, 2, 2]


class TestUnsloth:
    """The calls to unsloth, which does not run on a CPU."""

    @pytest.fixture
    def unsloth(self, monkeypatch):
        called = []
        names = ("unsloth", "unsloth.utils", "unsloth.utils.packing", "unsloth.models")
        modules = {name: types.ModuleType(name) for name in (*names, "unsloth.models.gemma2")}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        packing = modules["unsloth.utils.packing"]
        packing.mark_allow_overlength = lambda model: called.append(("mark", model))
        packing._enable_hf_packed_attention = lambda: called.append(("enable",))
        gemma2 = modules["unsloth.models"].gemma2 = modules["unsloth.models.gemma2"]
        gemma2.slow_attention_softcapping = lambda *args: ("unsloth's", *args)
        return types.SimpleNamespace(called=called, gemma2=gemma2)

    @pytest.fixture
    def row(self, sequences):
        samples = [{"input_ids": ids, "labels": ids} for ids in sequences]
        return packed(samples, 0, multiple_of=UnslothPacking.multiple_of)

    def test_gemma_2_gets_causal_masks(self, unsloth, trainer, row):
        assert row["input_ids"].shape[1] % 128 == 0
        packing = UnslothPacking(trainer.model)
        assert unsloth.called == [("mark", trainer.model), ("enable",)]
        assert packing.begin(row).keys() == row.keys()
        backbone = backbone_of(trainer.model)
        documents = document_ids(row["packed_seq_lengths"], torch.device("cpu"))
        places = torch.arange(len(documents))
        distance = places[:, None] - places[None]
        seen = (documents[:, None] == documents[None]) & (distance >= 0)
        masks = {"GA_mask": seen, "SWA_mask": seen & (distance < 64)}
        for name, expected in masks.items():
            found = getattr(backbone, name).mask_mod(0, 0, places[:, None], places[None])
            assert found.equal(expected)
        packing.end()
        assert masks.keys().isdisjoint(vars(backbone))

    def test_window_has_no_effect_on_shorter_samples(self, unsloth, trainer):
        packing = UnslothPacking(trainer.model)
        backbone = backbone_of(trainer.model)
        for longest, is_same in ((64, True), (65, False)):
            ids = [torch.arange(10, 10 + length) for length in (longest, 5)]
            packing.begin(packed([{"input_ids": one, "labels": one} for one in ids], 0))
            assert (backbone.SWA_mask is backbone.GA_mask) is is_same
        packing.end()

    def test_masks_are_removed_after_an_out_of_memory_error(self, unsloth, trainer, row):
        packing = UnslothPacking(trainer.model)
        packing.end()
        backbone = backbone_of(trainer.model)
        backbone.GA_mask = "made before memory ran out"
        packing.end()
        assert not hasattr(backbone, "GA_mask")

    def test_only_rows_with_our_masks_get_our_attention(self, unsloth, trainer):
        UnslothPacking(trainer.model)
        ours = unsloth.gemma2.slow_attention_softcapping
        UnslothPacking(trainer.model)
        assert unsloth.gemma2.slow_attention_softcapping is ours
        query, key, value = heads(4, 3, 1), heads(2, 3, 2), heads(2, 1, 3)
        config = types.SimpleNamespace(query_pre_attn_scalar=16, attn_logit_softcapping=5.0)
        module = types.SimpleNamespace(config=config)
        theirs = ("unsloth's", query, key, value, "mask", module, 1, 256)
        assert ours(query, key, value, "mask", module, 1, 256) == theirs
        documents = document_ids(torch.tensor(LENGTHS), torch.device("cpu"))
        found = ours(query, key, value, block_mask(documents, 8), module, 1, 256)
        expected = reference_attention(query, key, value, scale=0.25, softcap=5.0, window=8)
        assert found.shape == (1, 256, 64)
        torch.testing.assert_close(
            found.view(1, 256, 4, 16).transpose(1, 2), expected, rtol=1e-4, atol=1e-5
        )

    def test_other_models_are_left_alone(self, unsloth, trainer, row, monkeypatch):
        monkeypatch.setattr(trainer.model.config, "model_type", "llama")
        before = unsloth.gemma2.slow_attention_softcapping
        packing = UnslothPacking(trainer.model)
        assert unsloth.gemma2.slow_attention_softcapping is before
        assert packing.begin(row).keys() == row.keys()
        packing.end()
