import pytest
import torch


@pytest.fixture(scope="module")
def model(tiny_gemma2):
    return tiny_gemma2.load_model().eval()


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    ids = [torch.randint(0, 300, (length,)).tolist() for length in (12, 30)]
    # the first question is not labelled
    return [
        {"input_ids": ids[0], "labels": [-100] * 5 + ids[0][5:]},
        {"input_ids": ids[1], "labels": ids[1]},
    ]


def test_loss_is_the_mean_over_labelled_tokens(benchmark_module, model, rows):
    found = benchmark_module("training.compare_adapters").mean_losses(model, {"answers": rows})
    total = count = 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        tokens = int((labels[:, 1:] != -100).sum())
        total, count = total + loss * tokens, count + tokens
    assert found == {"answers": pytest.approx(total / count, abs=1e-4)}


def test_int8_cache_changes_the_loss_slightly(benchmark_module, model, rows):
    compare = benchmark_module("training.compare_adapters")
    (plain,) = compare.mean_losses(model, {"answers": rows}).values()
    (rounded,) = compare.mean_losses(model, {"answers": rows}, compare.RoundedCache).values()
    assert 0 < abs(rounded - plain) < 0.02 * plain


def test_keys_rotated_back_are_close_to_the_original(benchmark_module):
    keys, values = torch.randn(2, 1, 2, 9, 32)
    cache = benchmark_module("training.compare_adapters").RoundedCache()
    found = cache.update(keys, values, 0)
    for vectors, given in zip(found, (keys, values), strict=True):
        torch.testing.assert_close(vectors, given, rtol=0, atol=0.03)
