"""The base of every typed parameter section, what several sections share, and renamed keys."""

from pydantic import BaseModel, ConfigDict, Field

# The former name of a parameter, with its sections, and its name today: an error reports the new
# name. The new key stands beside the old one.
RENAMED_PARAMETERS = {
    "data_filtering.further_rules": "extra_rules",
    "inference.batching.prefill_tokens": "prefill_chunk_size",
    "inference.batching.slots": "max_num_seqs",
    "inference.shot_diversity": "example_diversity",
    "sft.answer_only_loss": "completion_only_loss",
    "sft.model_card.filtered_pairs.licence": "license",
    "sft.model_card.licence": "license",
    "sft.model_card.licence_terms": "license_terms",
    "sft.model_card.qa_pairs.licence": "license",
}


class Parameters(BaseModel):
    """A frozen parameter section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class GpuParameters(Parameters):
    """GPU resources of a node; a null is estimated from model and parameters.

    They decide where a node runs and do not change its result.
    """

    devices: int | None = Field(ge=1, description="Number of CUDA devices")
    memory_gb: float | None = Field(gt=0, description="Peak memory on each device, in 10⁹ bytes")
    disk_gb: float | None = Field(ge=0, description="Written to disk, in 10⁹ bytes")


def check_devices(gpu: GpuParameters, device: str, *, refuse_several: str = "") -> None:
    """Check that a node can use the devices that its section requests.

    Args:
        gpu: The requested resources.
        device: ``cpu`` or ``cuda``, where the node runs.
        refuse_several: The reason why the node cannot use several devices; empty if it can.

    Raises:
        ValueError: The node runs on the CPU, or cannot use so many devices.
    """
    if gpu.devices is None:
        return
    if device == "cpu":
        raise ValueError(
            f"gpu.devices = {gpu.devices}, but device 'cpu' uses none; leave gpu.devices null"
        )
    if gpu.devices > 1 and refuse_several:
        raise ValueError(f"gpu.devices = {gpu.devices}, but {refuse_several}")
