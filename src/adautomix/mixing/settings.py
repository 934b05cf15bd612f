"""Settings that every method shares; importing them does not import torch."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adautomix.errors import UsageError


class MixSettings(BaseModel):
    """When to mix, and what is added to the loss of mixes; the defaults mix at every step."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Mixing schedule")

    prob: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Probability that a step mixes; lowering it trains more on clean images.",
    )
    per_sample: bool = Field(
        False, description="Draw that probability per sample instead of per step."
    )
    start: float = Field(
        0.0, ge=0, le=1, description="Fraction of training after which mixing begins."
    )
    ramp: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of training over which the probability rises linearly from 0.",
    )
    stop: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Fraction of training after which mixing ends; at 0.75 the last "
        "quarter is clean.",
    )
    decouple: float = Field(
        0.0,
        ge=0,
        description="Weight of the decoupled regularizer, which asks for each class of a mix "
        "whatever its λ; 0.1 in openmixup.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start + self.ramp > self.stop:
            raise UsageError(
                f"mix.start + mix.ramp = {self.start + self.ramp:g} is above mix.stop = "
                f"{self.stop:g}: mixing would end before it is at its full probability"
            )
        return self
