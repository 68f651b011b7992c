"""The base of every typed parameter section, and what several sections share."""

from pydantic import BaseModel, ConfigDict, Field

# Dotted names that parameters had before, and the key's new name; an old one is an error.
RENAMED_PARAMETERS = {
    "data_filtering.further_rules": "extra_rules",
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
    """What a node shall be given of the GPUs; None is estimated from model and parameters.

    It says where a node runs, nothing about its result.
    """

    devices: int | None = Field(ge=1, description="CUDA devices")
    memory_gb: float | None = Field(gt=0, description="Peak on each device, in 10⁹ bytes")
    disk_gb: float | None = Field(ge=0, description="Written to disk, in 10⁹ bytes")


def check_devices(gpu: GpuParameters, device: str, *, refuse_several: str = "") -> None:
    """Raise ``ValueError`` when a section asks for GPUs that its node could not use.

    Args:
        gpu: What is asked for.
        device: ``cpu`` or ``cuda``, where the node runs.
        refuse_several: Why more than one is of no use, for the message; empty where it is.
    """
    if gpu.devices is not None and device == "cpu":
        raise ValueError(
            f"gpu.devices = {gpu.devices}, but device 'cpu' uses none; leave gpu.devices null"
        )
    if gpu.devices is not None and gpu.devices > 1 and refuse_several:
        raise ValueError(f"gpu.devices = {gpu.devices}, but {refuse_several}")
