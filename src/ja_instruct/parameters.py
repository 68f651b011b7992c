"""The base of every typed parameter section."""

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """A frozen parameter section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
