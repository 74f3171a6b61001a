"""NETWORKS: what a checkpoint, a solver and a probe have to know of each family of networks, one row a family."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fiducial import UserError
from fiducial.models.decoders.rounding import IMAGENET, UNIT
from fiducial.models.networks import ddt, dit, imf, jit, lightningdit, meanflow, rae, raev2, repa, sit
from fiducial.models.networks.parts import Layout

MEAN_VELOCITY = "average velocity"


@dataclass(frozen=True)
class NetworkSpec:
    """A row of NETWORKS."""

    name: str  # of the family, with which the names of its models begin
    build: Mapping[str, Callable[..., nn.Module]]  # by the name that --model takes; each as `DiT` is called
    predicts: str  # of diffusion.prediction.PREDICTIONS; a velocity along its own clock
    path: str  # of diffusion.paths
    clock: Callable[[float], float]  # what it is fed at a time t from 0, the image, to 1, noise
    noise_end: float  # the last such t that it was trained at
    # By names and texts that a file says beside the weights: `name`, that with what no sampler takes, or None.
    recognise: Callable[[Iterable[tuple[str, str]]], str | None]
    sampler: str  # unless another is asked for: that of its published numbers, or the closest to it that there is
    needs_variance: bool = False  # its samplers take one beside what it predicts
    layout: Layout | None = None  # None: its weights have a DiT's names and shapes
    is_alike: bool = False  # bare weights do not tell it from a DiT
    guided: int | None = None  # the first so many channels are, in its published numbers; None: all
    guidance: str = "outside"  # of two predictions; or "trained", into the weights; or "told" to the network, with its interval
    noise_scale: Callable[[int], float] = lambda _: 1.0  # standard deviation of its noise by the size of images
    least_time: float = 0.0  # by which x - image is at least divided, where that is its velocity
    has_inner: bool = False  # its networks may have an inner head, which they are asked for by `with_inner`
    vae_output: str = IMAGENET  # what a ViT decoder of its latents puts out, of models.decoders.rounding.OUTPUTS
    trained: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # what arguments of a training tell, as `sit.TRAINED`

    def told(self, said: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The path and the prediction, as `path` and `predicts` are called, that arguments of its training say."""
        found: dict[str, str] = {}
        for name, value in said:
            if value in self.trained.get(name, ()):
                found.setdefault(TOLD[name], self.trained[name][value])
        return found

    def unusual(self, told: Mapping[str, str]) -> dict[str, str]:
        """Those of `told` that are not so of the family's published networks."""
        usual = {"path": self.path, "prediction": self.predicts}
        return {name: value for name, value in told.items() if value != usual[name]}


MEAN_VELOCITY = "average velocity"
TOLD = {"path_type": "path", "prediction": "prediction"}  # what is chosen by arguments of a training, as a run's option of it


def _told(
    build: Mapping[str, Callable[..., nn.Module]],
    predicts: str,
    clock: Callable[[float], float],
    layout: Layout,
    sampler: str = "euler",
    **more: object,
) -> NetworkSpec:
    """The row of a flow on the straight path whose weights have names that no other family's have."""
    name = next(iter(build)).rpartition("-")[0]
    return NetworkSpec(name, build, predicts, "linear", clock, 1.0, lambda _: None, sampler, layout=layout, **more)


NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            name="DiT",
            build=dit.DiT_models,
            predicts="noise",
            path="ddpm",
            clock=lambda t: dit.NUM_TIMESTEPS * t,
            noise_end=1 - 1 / dit.NUM_TIMESTEPS,
            recognise=lambda _: None,  # what is not said to be another is a DiT
            sampler="ddpm",
            needs_variance=True,
            is_alike=True,
            guided=3,
        ),
        NetworkSpec(
            "SiT",
            sit.SiT_models,
            "velocity",
            "linear",
            sit.clock,
            1.0,
            sit.recognise,
            "euler",
            is_alike=True,
            guided=3,
            trained=sit.TRAINED,
        ),
        NetworkSpec(
            "REPA",
            repa.REPA_models,
            "velocity",
            "linear",
            repa.clock,
            1.0,
            repa.recognise,
            "euler",
            layout=repa.LAYOUT,
            is_alike=True,
            trained=repa.TRAINED,
        ),
        _told(lightningdit.LightningDiT_models, "velocity", sit.clock, lightningdit.LAYOUT, guided=3),
        _told(jit.JiT_models, "x0", sit.clock, jit.LAYOUT, "flow-heun", noise_scale=jit.noise_scale, least_time=jit.LEAST_TIME),
        _told(ddt.DDT_models, "velocity", sit.clock, ddt.LAYOUT),
        _told(rae.RAE_models, "velocity", repa.clock, rae.LAYOUT),
        _told(
            raev2.RAEv2_models,
            "x0",
            repa.clock,
            raev2.LAYOUT,
            least_time=raev2.LEAST_TIME,
            has_inner=True,
            vae_output=UNIT,
        ),
        _told(meanflow.MeanFlow_models, MEAN_VELOCITY, repa.clock, meanflow.LAYOUT, "jump", guidance="trained"),
        _told(imf.IMF_models, MEAN_VELOCITY, repa.clock, imf.LAYOUT, "jump", guidance="told"),
    )
}
USUAL = "DiT"


def models() -> list[str]:
    """The names of all models."""
    return [name for spec in NETWORKS.values() for name in spec.build]


def family_of(model: str | None) -> str:
    """The family that the name of a model, or of what might be one, begins with; DiT where it is of none."""
    return next((name for name in NETWORKS if model and model.startswith(f"{name}-")), USUAL)


def spec_of(model: str) -> NetworkSpec:
    """The row of a model.

    Raises:
        UserError: if there is no such model.
    """
    found = next((spec for spec in NETWORKS.values() if model in spec.build), None)
    if found is None:
        raise UserError(f"--model {model}: no such model; choose from {', '.join(models())}")
    return found


def told_by(keys: Iterable[str]) -> NetworkSpec | None:
    """The row of the family that names of weights tell, before or after `Layout.renamed`; None where they may be of several."""
    keys = set(keys)
    layouts = (spec for spec in reversed(NETWORKS.values()) if spec.layout)
    return next((spec for spec in layouts if spec.layout.is_told_by(keys)), None)


def is_guided_outside(model: str, cfg_scale: float) -> bool:
    """Whether a model's predictions are guided away from others of them: it needs a null label then, or another network."""
    return cfg_scale != 1.0 and spec_of(model).guidance == "outside"


def alike(model: str) -> list[str]:
    """The models of other families whose weights have the same names and shapes."""
    family = family_of(model)
    others = kin(NETWORKS[family]) if family in NETWORKS else []
    found = [f"{other.name}{model.removeprefix(family)}" for other in others]
    return [name for name, other in zip(found, others, strict=True) if name in other.build]


def kin(spec: NetworkSpec | None) -> list[NetworkSpec]:
    """The rows of other families whose weights look as those of this one; of None, of all whose weights look as a DiT's."""
    if spec is not None and not spec.is_alike:
        return []
    return [other for other in NETWORKS.values() if other.is_alike and other is not spec]


def asked(
    network: nn.Module,
    spec: NetworkSpec,
    shared_timestep: bool = False,
    told: tuple[float, float, float] | None = None,
    with_inner: bool = False,
) -> Callable[..., Tensor]:
    """A network on the clock of the samplers: (x (N, C, H, W), t from 0, the image, to 1, noise; labels (N,)) -> output.

    A velocity is turned so that it leads towards noise; a variance beside anything but noise is left out. Of a network that
    predicts the mean velocity, the time to which a step leads is the keyword `r`; without it, r = t.

    Args:
        shared_timestep: embed the timestep once, not once a row; the same but for the last bits of a smaller matrix product.
        told: strength, low and high end of guidance, to a network that is told them.
        with_inner: the output of the network's inner head comes behind its own, (N, 2C, H, W).
    """
    is_backwards = "velocity" in spec.predicts and spec.clock(1.0) < spec.clock(0.0)

    def ask(x: Tensor, t: float, labels: Tensor, r: float | None = None) -> Tensor:
        def number(value: float) -> Tensor:
            return torch.full((1 if shared_timestep else len(x),), value, device=x.device)

        more = [spec.clock(t if r is None else r)] if spec.predicts == MEAN_VELOCITY else []
        more += list(told or ()) if spec.guidance == "told" else []
        inner = {"with_inner": True} if with_inner else {}
        out = network(x, number(spec.clock(t)), labels, *map(number, more), **inner)
        if spec.predicts != "noise" and not with_inner:
            out = out[:, : x.shape[1]]
        return -out if is_backwards else out

    return ask
