"""Images by latent diffusion: network, path, grid, solver, guidance and codec, for given indices on one device."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fiducial import Group, Stopped, one_line, warn
from fiducial.diffusion.guidance import Guidance, Inner, Weak, guided
from fiducial.diffusion.prediction import Raw
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import probe
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import is_guided_outside
from fiducial.precision import plain_float32
from fiducial.sampling import plan
from fiducial.sampling.noise import NoiseStream, noise_threads
from fiducial.sampling.options.choices import ENDS, INNER_HEAD, rare
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import numerics
from fiducial.sampling.source.blocks import Blocks, Steps
from fiducial.sampling.source.decoding import decoded_at_once
from fiducial.sampling.source.failures import is_out_of_memory, not_finite
from fiducial.sampling.source.flow import Flow
from fiducial.sampling.source.networks import Networks
from fiducial.sampling.source.numerics import Numerics
from fiducial.sampling.source.weak import spec_beside


class Checking(Protocol):
    """A check of what is loaded: by rank 0 before others know of the run, and by all ranks."""

    def on_main(self, source: "LatentDiffusion", missing: int) -> None: ...

    def on_all(self, source: "LatentDiffusion", is_loaded: bool) -> None: ...


class LatentDiffusion:
    """A `Source`.

    Args:
        networks: what it draws with.
        meet: called on each rank that is to draw, before it loads anything but on trial.
        compiling: what holds while networks are compiled.
        cores: of this rank.
        check: of what is loaded, before it draws.
    """

    def __init__(
        self,
        networks: Networks,
        meet: Callable[[], object] = lambda: None,
        compiling: Callable[[], AbstractContextManager] = nullcontext,
        cores: int = 1,
        check: Checking | None = None,
    ):
        self.networks, self._meet, self.compiling, self._cores, self._check = networks, meet, compiling, cores, check
        config, device = networks.config, networks.device
        self.config, self.how, self.device = config, networks.how, device
        self.shape = (networks.latent.channels, networks.latent.size, networks.latent.size)
        self.ready, self.loading = self.how.precision, "weights and compiling" if self.how.compile else "weights"
        decoded, size = decoded_at_once(config, device), config.per_proc_batch_size
        is_joint = SAMPLERS[config.sampler].is_joint
        self.pieces = Blocks(size, device, self.how.cuda_tuning, lambda **event: networks.note(**event), decoded, is_joint)
        self.guidance, self.flow, self._sampler = guidance_of(config), networks.flow, SAMPLERS[config.sampler]
        self._grid = self.flow.grid(config, device)
        self._is_loaded = self.is_compiled = False

    def try_out(self, missing: int) -> None:
        """See `Source.try_out`: loads the networks, which are asked what they are, and checks what they draw."""
        if self.networks.network is None:
            self.networks.load()
            if self._check:
                self._check.on_main(self, missing)

    def switched(self) -> AbstractContextManager:
        return numerics.applied(self.how, self.config, self.device)

    def begin(self, note: Callable[..., object]) -> None:
        self.networks.note = note
        for event in self.networks.untold:
            note(**event)
        self.networks.untold.clear()

    def load(self) -> None:
        """Load the networks, and compile what is to be compiled; UserError if the probe says that the network is another."""
        if not self._is_loaded:
            self._meet()
            if self.networks.network is None:
                self.networks.load()
            if not self.is_compiled:
                self.compile()
            self._is_loaded = True

    def release(self) -> None:
        self.networks.release()
        self._is_loaded = self.is_compiled = False

    def told(self, group: Group) -> dict | None:
        """The answers of all ranks' networks to pure noise, the least of each number; what the check says of a rank ends all."""
        response = self.networks.response.recorded() if self.networks.response else None
        told = group.gather(response)
        if not self._is_loaded:  # who loads later, to mend, does so alone: its node's first rank may have nothing to draw
            self._meet, self.compiling = (lambda: None), nullcontext
        if self._check:
            self._check.on_all(self, self._is_loaded)
        group.wait()
        return least(told, str(self.config.ckpt)) if group.is_main else None

    def lines(self, told: dict | None, evaluations: int) -> list[str]:
        return lines(self.config, self.how, self.device, told, evaluations)

    def compile(self) -> None:
        """Compile the network, if it is to be; if that fails, go on without."""
        try:
            self.warm_up()
        except Exception as error:
            if isinstance(error, Stopped):
                raise
            self.go_on_without(error)

    def go_on_without(self, error: Exception) -> None:
        """Draw with the network as it is without the compiler, which has failed with this error."""
        self.networks.note(event="not compiled", reason=one_line(error))
        warn(f"warning: torch.compile failed, so this rank runs without it ({one_line(error)})")
        self.networks.load_anew()
        self.how = replace(self.how, compile=False, cuda_tuning=False)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Have the network compiled for the shapes that it will meet, if it is to be."""
        if not self.how.compile:
            self.is_compiled = True
            return
        try:
            with self.compiling(), self.networks.at_work(self.networks.network, "model"):
                numerics.compile_network(self.networks.network, self.how, self.device, *self.networks.beside())
                evaluate_each_shape(self)
        except Exception as error:
            if not is_out_of_memory(error):  # which the first block will find too, and draw in halves
                raise
        self.is_compiled = True

    def blocks(self, starts: Iterable[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.blocks`; `check` is called before each evaluation of the network."""
        self.load()

        def sample(piece: range, noise: NoiseStream) -> Tensor:
            with self.networks.at_work(self.networks.network, "model"):
                return finite(self, piece, count, self.sample(self.networks.network, piece, noise, check), check)

        # When there are fewer, compiled anew, so that what was compiled for more images gives its memory back.
        steps = Steps(self._noise, sample, self.networks.decode, self.networks.decode_in_fp32, self.compile)
        yield from self.pieces.draw(starts, count, steps)

    def _noise(self, pieces: list[range]) -> NoiseStream:
        config = self.config
        draws = self._sampler.noises(len(self._grid), **config.sampler_options())
        return NoiseStream(config.global_seed, pieces, self.shape, draws, self.device, noise_threads(self.device, self._cores))

    def guided(self, piece: range, network: DiT | None = None) -> Raw:
        """The network that is loaded, or another, for the labels of `piece`, guided."""
        config, network = self.config, network or self.networks.network
        labels = plan.labels(config.labels, config.num_classes, config.global_seed, piece.start, piece.stop)
        y = torch.from_numpy(labels).to(self.device)
        asking = self.flow.asked(self.networks.asked(network))
        weak = weak_for(self, network, y) if self.guidance.scale != 1.0 else None
        return guided(asking, weak, y, self.guidance)

    @torch.inference_mode()
    def latents(self, piece: range, check: Callable[[], object], network: DiT | None = None) -> Tensor:
        """The latents of one batch (N, C, H, W), by the network that is loaded or another."""
        with self._noise([piece]) as noise:
            return self.sample(network or self.networks.network, piece, noise, check)

    def sample(self, network: DiT, piece: range, noise: NoiseStream, check: Callable[[], object]) -> Tensor:
        """The latents of the next batch of a stream of noise."""
        predict = self.guided(piece, network)

        def model(x: Tensor, t: float, **beside: float) -> Tensor:
            check()
            return predict(x, t, **beside)

        return self.flow.draw(model, self._sampler, self._grid, noise, **self.config.sampler_options())


def weak_for(source: LatentDiffusion, network: DiT, labels: Tensor) -> Weak:
    """The side that a network is guided away from: another network, its own inner head, or the null label, as often as there are
    labels."""
    networks, asked = source.networks, source.flow.asked
    if weak := networks.weak_beside(network):
        return asked(networks.asked(weak, spec_beside(source.config, networks.spec)))
    if source.config.guidance_by == INNER_HEAD:
        both = asked(networks.asked(network, with_inner=True))
        return Inner(lambda *given, **beside: both(*given, **beside).chunk(2, dim=1))
    return torch.full_like(labels, network.null_label)


def guidance_of(config: SamplingConfig) -> Guidance:
    """The guidance that the options come to: none where the network is told how to guide itself, or does so untold."""
    if not is_guided_outside(config.model, config.cfg_scale):
        return Guidance()
    low, high = config.guidance_interval
    ends, by_time = ENDS[config.guidance_ends], {"schedule": config.cfg_schedule, "power": config.cfg_power}
    return Guidance(config.cfg_scale, config.cfg_channels, low, high, *ends, **by_time)


def evaluate_each_shape(source: LatentDiffusion) -> None:
    """Evaluate the network once for each shape that it will meet, guided and not."""
    for images in {len(piece) for piece in source.pieces.pieces([0])}:
        x = torch.zeros(images, *source.shape, device=source.device)
        for t in source.guidance.times():
            source.guided(range(images))(x, t)


def finite(source: LatentDiffusion, piece: range, count: int, latents: Tensor, check: Callable[[], object]) -> Tensor:
    """The same latents if all are finite, else with those that are not drawn once more, in fp32.

    Raises:
        UserError: if some are not even then.
    """
    bad = ~latents.isfinite().flatten(1).all(1)
    bad[max(count - piece.start, 0) :] = False
    if not bad.any():
        return latents
    network = source.networks.network_in_fp32()
    with plain_float32(), source.networks.at_work(network, "model"):
        again = source.latents(piece, check, network)
    latents = torch.where(bad[:, None, None, None], again, latents)
    indices = [piece[row] for row in bad.nonzero().flatten().tolist()]
    source.networks.note(event="not finite, drawn again in fp32", indices=indices)
    if lost := [index for index in indices if not latents[index - piece.start].isfinite().all()]:
        raise not_finite("model", lost)
    return latents


def least(told: list[dict | None], ckpt: str) -> dict | None:
    """The least of each number that the ranks have told of their networks, as an entry of the manifest; None where none was
    asked. What is doubtful about one is said."""
    if not (asked := [one for one in told if one]):
        return None
    if said := next(filter(None, map(probe.doubt_of, asked)), None):
        warn(f"warning: {ckpt}: {said}")
    return {name: min(one[name] for one in asked) for name in asked[0]}


def lines(config: SamplingConfig, how: Numerics, device: torch.device, told: dict | None, evaluations: int) -> list[str]:
    """Lines on such a source, as `Source.lines`."""
    told_of = config.sampler_options() | Flow.of(config).recorded(config)
    own = "".join(f", {name} {value}" for name, value in told_of.items() if value)
    of_block = f": {evaluations:,} evaluations of the network for a block" if evaluations else ""
    low, high = config.guidance_interval
    compiled, exact = "compiled" if how.compile else "not compiled", ", exact" if config.exact else ""
    how_guided = "".join(f", {value}" for name, value in rare(config).items() if name != "state")
    lines = [
        f"sampler   {config.sampler}, {config.num_sampling_steps} steps{own}{of_block}",
        f"guidance  cfg-scale {config.cfg_scale} on {config.cfg_channels} channels, interval {low:g},{high:g}{how_guided}",
        f"numerics  {how.precision}, {compiled}, attention {how.attention}, on {device.type}{exact}",
    ]
    return [*lines, f"probe     {probe.in_words(told)}"] if evaluations else lines
