from types import SimpleNamespace

import accelerate
import pytest
import torch

from ja_instruct.devices import load_nf4_model


class Directory:
    """Notes how its model is to be loaded."""

    def load_model(self, **kwargs):
        return kwargs


def test_without_a_launcher_the_model_is_on_the_first_device():
    asked = load_nf4_model(Directory(), "cuda")
    assert asked == {"device_map": {"": 0}, "dtype": torch.bfloat16}
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("index", [0, 3])
def test_under_a_launcher_each_process_has_its_own_device(monkeypatch, index):
    state = SimpleNamespace(local_process_index=index)
    monkeypatch.setattr(accelerate, "PartialState", lambda: state)
    assert load_nf4_model(Directory(), "cuda")["device_map"] == {"": index}
