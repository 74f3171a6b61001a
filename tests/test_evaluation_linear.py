"""Linear algebra that lets other threads go on, held against scipy's own."""

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import ROOT
from torch.distributed import HashStore

from fiducial import Group, own_process
from fiducial.evaluation.metrics import frechet, linear
from fiducial.evaluation.metrics.gaussians import frechet_distance, frechet_error
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.ranks.cores import bounded_threads, own_cores, share

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 30), (30, 40), (150, 150)])
def test_singular_values(shape):
    expected = scipy.linalg.svdvals(normal(*shape))
    np.testing.assert_allclose(linear.singular_values(normal(*shape)), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(linear._on(CPU, normal(*shape), "svdvals")[0], expected, rtol=1e-12, atol=1e-12)


def test_what_a_gpu_does_not_find_is_an_error_of_the_same_kind(monkeypatch):
    def fail(_: object) -> None:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(np.linalg.LinAlgError, match="eigh: the algorithm failed to converge"):
        linear._on(CPU, normal(4, 4), "eigh")


@pytest.mark.parametrize("size", [1, 6, 100])
def test_eigenvectors(size):
    matrix = np.atleast_2d(np.cov(normal(size, 2 * size)))
    before = matrix.copy()
    for values, vectors in (linear.eigen(matrix), linear._on(CPU, matrix, "eigh")):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-12)
    assert (matrix == before).all()


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (50, 50), (50, 20), (50, 0)])
def test_cholesky_with_pivots(size, rank):
    half = normal(size, rank)
    found = linear.pivoted_cholesky(half @ half.T)
    assert found.shape == (size, max(rank, 1))
    np.testing.assert_allclose(found @ found.T, half @ half.T, atol=1e-12)


@pytest.mark.parametrize("function", [linear.singular_values, linear.eigen, linear.pivoted_cholesky])
def test_what_is_not_finite_is_refused(function):
    with pytest.raises(ValueError, match="infs or NaNs"):
        function(np.full((3, 3), np.nan))


@pytest.fixture
def counted():
    """Counts by a thread beside the test, which gets no turn but where the test lets go of the interpreter."""
    counts, ended, before = [0], threading.Event(), sys.getswitchinterval()

    def count() -> None:
        while not ended.is_set():
            counts[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    sys.setswitchinterval(1000)
    yield counts
    sys.setswitchinterval(before)
    ended.set()
    thread.join()


@pytest.mark.parametrize("function", [linear.singular_values, linear.eigen, linear.pivoted_cholesky])
def test_other_threads_go_on_meanwhile(function, counted, monkeypatch):
    """A rank's heartbeats, say, without which others would take it for lost."""
    routine, went_on = linear._routine, []

    def watched(name):
        def call(*arguments) -> None:
            before = counted[0]
            routine(name)(*arguments)
            went_on.append(counted[0] > before)

        return call

    monkeypatch.setattr(linear, "_routine", watched)
    matrix = np.cov(normal(300, 600))
    for _ in range(50):  # a busy machine may give the other thread no turn at the first
        function(matrix)
        if any(went_on):
            break
    assert any(went_on)


def test_nothing_in_the_evaluation_asks_scipy_itself():
    asking = [path for path in (ROOT / "evaluation").rglob("*.py") if "scipy.linalg" in path.read_text()]
    assert [path.name for path in asking] == ["linear.py"]


def test_a_gpu_does_the_algebra_where_the_ranks_have_one(monkeypatch):
    asked, on = [], linear._on
    monkeypatch.setattr(linear, "_on", lambda device, *what: (asked.append((device, what[1])), on(CPU, *what))[1])
    rows, group = normal(60, 5), Group(0, 1, 0, "0", GPU, HashStore())
    statistics = FeatureStatistics.empty(5)
    statistics.update(rows)
    statistics.flush()
    own, reference = SimpleNamespace(statistics=statistics, rows=rows), SimpleNamespace(mu=np.zeros(5), sigma=np.eye(5))
    inputs = Inputs(own, reference, None, None, group)
    found = frechet.fid(inputs)
    assert asked == [(GPU, "svdvals"), (GPU, "eigh")]
    assert found.value == pytest.approx(frechet_distance(statistics.mean, statistics.covariance, np.zeros(5), np.eye(5)))
    assert found.error == pytest.approx(frechet_error(rows, statistics, np.zeros(5), np.eye(5)))


def test_threads_are_no_more_than_a_ranks_share_of_the_cores(monkeypatch):
    from threadpoolctl import threadpool_info, threadpool_limits

    def wide() -> set[int]:
        return {torch.get_num_threads(), *(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")}

    monkeypatch.setattr("fiducial.ranks.cores.own_cores", lambda: [0, 1, 2, 3, 4, 5])
    here = {**own_process(), "cores": [0, 1, 2, 3, 4, 5]}
    fellows = [here, here, {**here, "cores": [6, 7]}, {**here, "host": "another"}]
    several, alone = (Group(0, len(some), 0, "0", CPU, HashStore(), some) for some in (fellows, []))
    assert (share(several), share(alone)) == (3, 6)
    before = torch.get_num_threads()
    try:
        for threads, inside in ((4, {3}), (2, {2})):
            torch.set_num_threads(threads)
            with threadpool_limits(threads, user_api="blas"):
                with bounded_threads(several):
                    assert wide() == inside
                with bounded_threads(alone):
                    assert wide() == {threads}
                assert wide() == {threads}
    finally:
        torch.set_num_threads(before)


def test_a_process_knows_its_cores():
    assert own_cores() == sorted(set(own_cores()))
    assert own_cores()
