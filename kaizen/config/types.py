"""Types of the configuration's values, and the base class of its sections."""

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
Word = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""A name, or a whole number that is taken for the name of its digits."""
AUTO: Final[Any] = "auto"
"""Value of a key that `kaizen.training.defaults` replaces by a value that suits the data."""
T = TypeVar("T")
if TYPE_CHECKING:
    Auto: TypeAlias = Annotated[T, "the type after that replacement"]
else:
    Auto = T | Literal["auto"]


class Section(BaseModel):
    """Base class of sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
