"""MIND: how far samples lie from reference images along random directions of feature space."""

import numpy as np
import torch

from fiducial import Group, progress_bar
from fiducial.evaluation.metrics import FIDELITY_SEED, MIND_DIRECTIONS
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.intervals import Measured, measured, moves_of
from fiducial.evaluation.metrics.neighbours import Chosen

DIRECTIONS, ROWS = 64, 8192  # at once: 13 MB of projections of 50,000 images


def mind(inputs: Inputs) -> Measured:
    """MIND of the samples' features to those of the reference's images."""
    return monge_distance(inputs.own.rows, inputs.reference.features, inputs.group, strata=inputs.strata)


def monge_distance(
    x: np.ndarray,
    y: np.ndarray,
    group: Group,
    directions: int = MIND_DIRECTIONS,
    seed: int = FIDELITY_SEED,
    strata: np.ndarray | None = None,
) -> Measured:
    """Monge Inception Distance (arXiv 2605.06797) of samples x (N, D) to y (M, D) float32, drawn as torch-fidelity draws it.

    3 D times the squared 2-Wasserstein distance of the projections on a random direction, the mean over `directions`. On one
    direction that is the mean squared gap between both sides in ascending order; of the larger side as many rows are drawn as
    the smaller has. The ranks share the directions out.

    The standard error is by the delta method: the derivative of one direction's distance by a sample at t is Kantorovich's
    potential, the integral up to t of twice the gap between t and what it is transported to. Where fewer than all samples are
    drawn, `strata` (N,), as `intervals.moves_of` takes them, do not count, and the moves of the others are 0.
    """
    generator, count = torch.Generator().manual_seed(seed), min(len(x), len(y))
    drawn = [
        slice(None) if len(rows) == count else torch.randperm(len(rows), generator=generator)[:count].sort().values.numpy()
        for rows in (x, y)
    ]
    moves, strata = np.zeros(len(x)), strata if len(x) == count else None
    x, y = (rows if len(rows) == count else Chosen(rows, indices) for rows, indices in zip((x, y), drawn, strict=True))
    units = torch.randn(directions, x[:1].shape[1], generator=generator)
    units /= units.norm(dim=1, keepdim=True).clamp_min(1e-12)
    total, influences = np.zeros(1), np.zeros(count)
    with progress_bar(directions, "MIND", "direction", delay=5) as bar:
        for number, some in enumerate(units.split(DIRECTIONS)):
            if number % group.world_size == group.rank:
                group.check()
                ours, order = projected(x, some, group).sort(0)
                gaps = (ours - projected(y, some, group).sort(0).values).double()
                total += float(gaps.square().mean(0).sum())
                steps = (gaps[1:] + gaps[:-1]) * ours.double().diff(dim=0)
                potentials = torch.zeros_like(gaps).scatter(0, order, torch.cat([gaps[:1] * 0, steps.cumsum(0)]))
                influences += potentials.sum(1).cpu().numpy()
            bar.update(len(some))
    scale = 3 * units.shape[1] / directions
    moves[drawn[0]] = moves_of(scale * group.sum(influences), strata)
    return measured(scale * float(group.sum(total)[0]), moves, 0)


def projected(rows: "np.ndarray | Chosen", units: torch.Tensor, group: Group) -> torch.Tensor:
    """Rows (N, D) on directions (K, D): (N, K) float32, on the group's device."""
    units = units.T.to(group.device)
    parts = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    return torch.cat([torch.from_numpy(part).to(group.device) @ units for part in parts])
