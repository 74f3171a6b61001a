"""From values to levels: the one place that knows how a codec's images become uint8, or stay what they are. No torch."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torch import Tensor

# The rules by the names that options have, and that a run's identity records.
NONE = "none"
ROUNDING = {"half-up": "dit", "truncate": "repa", "half-even": "half-even", NONE: NONE}
# What the numbers that a ViT decoder puts out are: pixels less ImageNet's mean, by its deviation; or from 0, black, to 1, white.
OUTPUTS = IMAGENET, UNIT = "imagenet", "unit"
# Pixels in [-1, 1] to levels before truncation: factor and offset. `dit` is 255 y rounded half up, for y in [0, 1]; `repa`
# truncates 255 y, which is half a level darker, as ADM's own sampler does.
TRUNCATED = {"dit": (127.5, 128.0), "repa": (127.5, 127.5)}


def recorded(name: str) -> str | None:
    """The name under which a rule is recorded, from either name; None where there is no such rule."""
    return name if name in ROUNDING.values() else ROUNDING.get(name)


def to_uint8(images: "Tensor", rounding: str = "dit") -> "Tensor":
    """Images (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8, by a rule as it is recorded, `none` not among them."""
    if rounding == "half-even":
        return to_levels(images).round().byte()
    scale, offset = TRUNCATED[rounding]
    return (scale * images + offset).clamp(0, 255).permute(0, 2, 3, 1).byte()


def to_levels(images: "Tensor") -> "Tensor":
    """Images (N, 3, H, W) in [-1, 1] -> (N, H, W, 3), not rounded: 255 y, where y = (x + 1) / 2 is cut off at 0 and 1."""
    return (255 * ((images + 1) / 2)).clamp(0, 255).permute(0, 2, 3, 1)


def to_pixels(images: "Tensor", rounding: str = "dit") -> "Tensor":
    """Images (N, 3, H, W) in [-1, 1] -> (N, H, W, 3): uint8, or by `none` float32 levels from 0 to 255."""
    return to_levels(images.float()).contiguous() if rounding == NONE else to_uint8(images, rounding)
