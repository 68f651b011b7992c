import math

import pytest
import torch
from torch import nn
from transformers.integrations.neftune import neftune_post_forward_hook

from ja_instruct.pipelines.sft.neftune import PackedNeftune, noise

ALPHA = 5.0
LENGTHS = torch.tensor([3, 60], dtype=torch.int32)
WIDTH = 64


def of_each_token(lengths):
    return torch.repeat_interleave(lengths, lengths)


@pytest.fixture
def embedded():
    return torch.randn(1, int(LENGTHS.sum()), WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _same_noise_each_time():
    torch.manual_seed(0)


class TestNoise:
    def test_is_bounded_by_each_samples_own_length(self, embedded):
        for sample in noise(of_each_token(LENGTHS), embedded, ALPHA).split(LENGTHS.tolist(), dim=1):
            bound = ALPHA / math.sqrt(sample.shape[1] * WIDTH)
            assert 0.95 * bound < sample.abs().max() <= bound
            assert abs(sample.mean()) < 0.1 * bound
            # of a uniform distribution
            assert sample.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    @pytest.mark.parametrize("length", [1, 7, 60])
    def test_of_a_sample_alone_is_transformers(self, length):
        embedded = torch.randn(1, length, WIDTH)
        module = nn.Embedding(2, WIDTH)
        module.neftune_noise_alpha = ALPHA
        torch.manual_seed(3)
        theirs = neftune_post_forward_hook(module, None, embedded) - embedded
        torch.manual_seed(3)
        ours = noise(torch.full((length,), length), embedded, ALPHA)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize(("drawn", "expected"), [(0.0, -1.0), (0.5, 0.0), (1.0, 1.0)])
    def test_follows_the_numbers_drawn(self, embedded, monkeypatch, drawn, expected):
        monkeypatch.setattr(torch, "rand_like", lambda like: like.new_full((), drawn))
        found = noise(of_each_token(LENGTHS), embedded, ALPHA)
        bounds = ALPHA / torch.sqrt(of_each_token(LENGTHS) * float(WIDTH))
        assert found.shape == (1, 63, 1)
        torch.testing.assert_close(found[0, :, 0], expected * bounds)

    def test_has_the_embeddings_data_type(self, embedded):
        half = embedded.to(torch.bfloat16)
        assert noise(of_each_token(LENGTHS), half, ALPHA).dtype is torch.bfloat16


class TestPackedNeftune:
    @pytest.fixture
    def model(self, make_trainer):
        return make_trainer().model.train()

    @pytest.fixture
    def embed(self, model):
        ids = torch.arange(300, 363)[None]
        return lambda: model.get_base_model().get_input_embeddings()(ids)

    def test_is_added_only_between_begin_and_end(self, model, embed):
        plain = embed()
        neftune = PackedNeftune(model, ALPHA)
        assert embed().equal(plain)
        neftune.begin(LENGTHS)
        torch.manual_seed(4)
        noisy = embed()
        torch.manual_seed(4)
        expected = plain + noise(of_each_token(LENGTHS), plain, ALPHA)
        torch.testing.assert_close(noisy, expected)
        assert not noisy.equal(plain)
        neftune.end()
        assert embed().equal(plain)

    def test_is_off_while_evaluating(self, model, embed):
        plain = embed()
        neftune = PackedNeftune(model, ALPHA)
        neftune.begin(LENGTHS)
        model.eval()
        assert embed().equal(plain)
        model.train()
        assert not embed().equal(plain)


ONE_SAMPLE_A_STEP = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "neftune_noise_alpha": ALPHA,
    "max_steps": 3,
}
PACKED = {"tokens_per_batch": 300, "packing": True}


def test_packed_training_is_transformers_own_for_one_sample_a_step(train_tiny):
    """With the same random numbers; rows of several samples draw them in another order."""
    theirs = train_tiny(**ONE_SAMPLE_A_STEP).curve("loss")
    ours = train_tiny(**ONE_SAMPLE_A_STEP, **PACKED).curve("loss")
    assert ours == pytest.approx(theirs, rel=1e-4)
    without = train_tiny(**{**ONE_SAMPLE_A_STEP, **PACKED, "neftune_noise_alpha": None})
    assert without.curve("loss")[1] != pytest.approx(theirs[1], rel=1e-4)


def test_trained_adapter_has_no_noise(train_tiny):
    trained = train_tiny(neftune_noise_alpha=ALPHA, max_steps=1, **PACKED)
    model = trained.artifact.model.train()
    ids = torch.arange(300, 363)[None]
    assert model(input_ids=ids).logits.equal(model(input_ids=ids).logits)
