import inspect

import pytest

from ja_instruct import checks, datasets, demo

CLASSES = [getattr(package, name) for package in (datasets, demo) for name in package.__all__]
PROTOCOLS = [
    checks.ChecksInput,
    checks.ChecksRecords,
    checks.ChecksOutput,
    checks.DescribesModel,
    checks.Downloads,
]


@pytest.mark.parametrize("dataset", CLASSES, ids=lambda one: one.__name__)
def test_a_dataset_implements_a_protocol_wholly_or_not_at_all(dataset):
    """Otherwise ``isinstance`` is false, and preflight skips the dataset silently."""
    for protocol in PROTOCOLS:
        methods = {name for name in vars(protocol) if not name.startswith("_")}
        implemented = {name for name in methods if hasattr(dataset, name)}
        assert implemented in (set(), methods), protocol
        for name in implemented:
            expected = inspect.signature(getattr(protocol, name)).parameters
            assert list(inspect.signature(getattr(dataset, name)).parameters) == list(expected)
