import datasets

from ja_instruct.datasets import HubDataset


def test_loads_with_the_arguments_of_the_catalog(monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **kwargs: asked.append((names, kwargs)) or "data"
    )
    dataset = HubDataset(dataset_name="owner/name", dataset_kwargs={"split": "train"})
    assert dataset.load() == "data"
    assert asked == [(("owner/name",), {"split": "train"})]


def test_leaves_torch_alone(run_python):
    """Filtering needs no model; torch would more than double the memory that it takes."""
    program = (
        "import sys; from ja_instruct.datasets import HubDataset; "
        "HubDataset(dataset_name='owner/name'); sys.exit('torch' in sys.modules)"
    )
    run_python("-c", program)
