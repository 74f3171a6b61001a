"""SiT (Ma et al., arXiv 2401.08740): DiT's network under DiT's names, trained to predict velocity between noise at 0 and the
image at 1, on the straight path, or what else the arguments in its file say. A variance beside it, in releases with
`learn_sigma`, is not used.
"""

import re
from collections.abc import Callable, Iterable

from fiducial.models.networks.dit import DiT, DiT_models

SiT_models: dict[str, Callable[..., DiT]] = {f"SiT{name.removeprefix('DiT')}": build for name, build in DiT_models.items()}
# What its training script calls what can be drawn here, and what that is called here.
TRAINED = {
    "path_type": {"Linear": "linear", "GVP": "gvp", "VP": "vp"},
    "prediction": {"velocity": "velocity", "score": "score", "noise": "noise"},
}
NAME_OF = ("model", "model_name", "arch", "network", "name")  # as what a network is called is called
NAME = re.compile(r"SiT-[A-Z]{1,2}/[0-9]{1,2}")
PREDICTIONS = ("velocity", "v", "v_prediction")  # a DiT's may be called, too, and is of noise


def clock(t: float) -> float:
    """The timestep that it is fed at a time from 0, the image, to 1, noise."""
    return 1 - t


def recognise(said: Iterable[tuple[str, str]]) -> str | None:
    """`SiT`, or that with what was trained otherwise and cannot be drawn; None where nothing says that it is one."""
    said = list(said)
    is_sit = any(
        name == "path_type" or (name == "prediction" and value in PREDICTIONS) or (name in NAME_OF and NAME.fullmatch(value))
        for name, value in said
    )
    if not is_sit:
        return None
    odd = next((f"{name} {value}" for name, value in said if value not in TRAINED.get(name, (value,))), None)
    return f"SiT with {odd}" if odd else "SiT"
