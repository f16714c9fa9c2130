"""Types of the configuration's values, and the base class of its sections."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from kaizen.plugins import installed, is_code, unknown

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


@dataclass(frozen=True)
class OneOf:
    """Text that is one of our names, or names an own part of the kind `key` (see kaizen.plugins)."""

    key: str
    words: tuple[str, ...] = ()
    beginnings: tuple[str, ...] = ()
    """Beginnings of further names of ours."""

    def check(self, name: str) -> str:
        """The name, unchanged.

        Raises:
            ValueError: it names nothing; the message says what is allowed.
        """
        ours = name in self.words or (name.startswith(self.beginnings) and name not in self.beginnings)
        if not ours and not is_code(name) and name not in installed(self.key):
            raise ValueError(
                unknown(self.key, name, [*self.words, *(f"{beginning}NAME" for beginning in self.beginnings)])
            )
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


class Section(BaseModel):
    """Base class of sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
