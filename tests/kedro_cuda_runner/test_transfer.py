"""What may travel between the runner's process and a node's."""

import pickle

import gpu_nodes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedro_cuda_runner.transfer import (
    NotTransferableError,
    NotTransferred,
    dumps,
    pack_for_hooks,
    unpack_for_hooks,
)

VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


class Device:
    type = "cuda"

    def __str__(self):
        return "cuda:1"


class TensorOnDevice(torch.Tensor):
    """Says that it is on a device, where there is none."""

    @property
    def device(self):
        return Device()


class Refusing:
    def __reduce__(self):
        raise RuntimeError("this one stays")


class TestDumps:
    @given(VALUES)
    def test_limit_is_exact(self, value):
        size = len(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        assert len(dumps(value, limit=size)) == size
        with pytest.raises(NotTransferableError, match="larger than 0 MiB"):
            dumps(value, limit=size - 1)

    def test_limit_holds_for_large_parts(self):
        """Those are written past the pickler's own buffer."""
        with pytest.raises(NotTransferableError, match="larger than 1 MiB"):
            dumps([b"x" * 2**19, b"y" * 2**19], limit=2**20)

    def test_tensor_and_model_on_the_cpu(self):
        value = {"tensor": torch.arange(5.0), "model": torch.nn.Linear(2, 3)}
        copy = pickle.loads(dumps(value))
        assert torch.equal(copy["tensor"], value["tensor"])
        assert torch.equal(copy["model"].weight, value["model"].weight)

    @pytest.mark.parametrize(
        ("tensor", "where"),
        [
            (torch.ones(2).as_subclass(TensorOnDevice), "cuda:1"),
            (torch.nn.Parameter(torch.ones(2, device="meta")), "meta"),
        ],
    )
    @pytest.mark.parametrize("wrap", [lambda tensor: tensor, lambda tensor: {"deep": [tensor]}])
    def test_tensor_on_a_device(self, tensor, where, wrap):
        expected = f"it holds a tensor on {where}; move it to the CPU with .cpu()"
        with pytest.raises(NotTransferableError) as caught:
            dumps(wrap(tensor))
        assert str(caught.value) == expected

    def test_model_on_a_device(self):
        with pytest.raises(NotTransferableError, match="a tensor on meta"):
            dumps(torch.nn.Linear(2, 3, device="meta"))

    @pytest.mark.parametrize(
        ("value", "why"),
        [(lambda: None, "it cannot be pickled: .*lambda"), (Refusing(), "this one stays")],
    )
    def test_what_cannot_be_pickled(self, value, why):
        with pytest.raises(NotTransferableError, match=why):
            dumps(value)


class TestHooks:
    @given(VALUES)
    def test_plain_values_survive(self, value):
        assert unpack_for_hooks(pack_for_hooks(value)) == value

    @pytest.mark.parametrize(
        ("value", "type_name", "why"),
        [
            (torch.ones(2), "torch.Tensor", "it holds tensors"),
            ([torch.ones(2)], "builtins.list", "it holds tensors"),
            (torch.nn.Linear(2, 3), "torch.nn.modules.linear.Linear", "it holds a model"),
            (gpu_nodes.HoldsFunctionError("x"), "gpu_nodes.HoldsFunctionError", "be pickled"),
        ],
    )
    def test_what_stays_is_described(self, value, type_name, why):
        packed = pack_for_hooks(value)
        assert isinstance(packed, NotTransferred)
        assert packed.type_name == type_name
        assert why in packed.reason
        assert unpack_for_hooks(packed) is packed

    def test_what_cannot_be_unpickled_here(self):
        packed = pack_for_hooks(gpu_nodes.TwoPartsError("two", "parts"))
        unpacked = unpack_for_hooks(packed)
        assert isinstance(unpacked, NotTransferred)
        assert "it cannot be unpickled here: " in unpacked.reason
