"""Section views: one entry per view."""

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kaizen.config.types import NonNegative, OneOf, Positive, Probability, Section

Operation = Annotated[str, OneOf("views.extra")]


class ViewConfig(Section):
    size: int | None = Field(
        None, ge=4, le=1024, description="side in pixels; null: that of the images, as the first two views need"
    )
    crop_scale: tuple[Positive, Positive] = Field(
        (0.08, 1.0), description="smallest and largest part of the image's area"
    )
    crop_ratio: tuple[Positive, Positive] = Field(
        (0.75, 4 / 3), description="width / height of the crop, smallest and largest"
    )
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.4, 0.4, 0.2, 0.1), description="strength of brightness, contrast, saturation, hue"
    )
    jitter_p: Probability = Field(0.8, description="probability of colour jitter")
    gray_p: Probability = Field(0.2, description="probability of greyscale")
    blur_p: Probability = Field(0.0, description="probability of Gaussian blur")
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="radius of the blur in pixels")
    solarize_p: Probability = Field(0.0, description="probability of solarisation at 128")
    flip_p: Probability = Field(0.5, description="probability of a horizontal flip")
    extra: tuple[Operation, ...] = Field(
        (), description="operations of your own after these, as path/to/file.py:Name", examples=["erase.py:Erase"]
    )

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `extra` where there is none, so that the hash of such a configuration stays what it was."""
        return {key: value for key, value in handler(self).items() if key != "extra" or value}

    @model_validator(mode="after")
    def _ordered(self) -> "ViewConfig":
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]; allowed: [smallest, largest]")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; allowed: areas up to 1, the whole image")
        return self
