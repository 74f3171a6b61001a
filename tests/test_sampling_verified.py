"""The findings of doctor on numerics, and the agreement of an extractor on a GPU with the CPU."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

import fiducial
from fiducial import UserError
from fiducial.evaluation.features import agreement
from fiducial.evaluation.features.load import load_extractor
from fiducial.sampling.commands import doctor, verified
from fiducial.sampling.source import numerics, verification
from fiducial.sampling.source.numerics import REFERENCE, Numerics
from fiducial.studies.doctor import of_evaluation

CPU = torch.device("cpu")
BF16 = Numerics("bf16", False, "products", True)


@pytest.fixture
def short(monkeypatch):
    """Few steps, few images, and nothing compiled."""
    few = {"per_proc_batch_size": 2, "num_sampling_steps": "20"}
    cases = {name: (kind, min(size, 8), changes | few) for name, (kind, size, changes) in verified.CASES.items()}
    monkeypatch.setattr(verified, "CASES", cases)
    monkeypatch.setattr(numerics, "choices", lambda *_: (BF16, REFERENCE))


@pytest.mark.usefixtures("short")
def test_doctor_compares_every_precision_of_two_networks(monkeypatch):
    found = [str(finding) for finding in doctor.of_numerics(CPU)]
    assert [line.split(": ")[0].split(maxsplit=2)[2] for line in found] == ["the digits", "2 random blocks of DiT-XL/2"]
    assert all(line.startswith("ok ") and "bf16, not compiled: evaluations off by 0.0" in line for line in found)
    compare = verification.compare
    monkeypatch.setattr(verification, "compare", lambda *given: replace(compare(*given), pixels=7.0))
    (first, _) = doctor.of_numerics(CPU)
    assert first.level == doctor.PROBLEM  # no other is right
    assert "pixels are off by 7 levels in the mean against fp32 (0.5 is allowed)" in first.text
    (of_third, _) = doctor.of_another_gpu(3, doctor.of_numerics(CPU))
    assert of_third.text == f"GPU 3: {first.text}" or of_third.text.startswith("GPU 3: the digits: bf16")


def test_a_way_that_fails_is_a_note_where_another_is_right(monkeypatch):
    monkeypatch.setattr(doctor, "verified", lambda _: [iter([("a: tf32", False), ("a: bf16", True)])])
    found = list(doctor.of_numerics(CPU))
    assert [one.level for one in found] == [doctor.NOTE, doctor.OK]
    (other,) = doctor.of_another_gpu(1, iter(found))
    assert (other.level, other.text) == (doctor.NOTE, "GPU 1: a: tf32")


def test_an_extractor_agrees_with_the_cpu_or_is_not_used(monkeypatch, tmp_path, alone):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = SimpleNamespace(name="Pretended GPU", uuid="1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpu.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    right = load_extractor("digits", None, alone)
    asked = []

    def with_error(size: float) -> object:
        def apply(images: torch.Tensor) -> tuple[torch.Tensor, None]:
            features, spatial = right.apply(images)
            noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
            return features * (1 + size * noise), spatial

        return replace(right, apply=apply)

    def on_cpu() -> object:
        asked.append(1)
        return right

    for size in (1e-3, float("nan")):
        with pytest.raises(UserError, match=r"Pretended GPU of rank 0 on .* gives other features than the CPU"):
            agreement.require(with_error(size), on_cpu, alone)
    agreement.require(with_error(1e-6), on_cpu, alone)
    agreement.require(with_error(1e-6), on_cpu, alone)
    assert len(asked) == 3  # what was found is known the next time
    gpu.uuid = "2"  # and of another GPU of the kind nothing is
    with pytest.raises(UserError, match="Pretended GPU of rank 0"):
        agreement.require(with_error(1e-3), on_cpu, alone)


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_every_rank_asks_its_own_gpu_and_all_end_alike(off, monkeypatch, tmp_path, alone):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Pretended GPU", uuid="1"))
    right = load_extractor("digits", None, alone)
    wrong = replace(right, apply=lambda images: ((1 + off) * right.apply(images)[0], None))
    store, fellows = HashStore(), [{**fiducial.own_process(), "launcher": None}] * 2
    groups = [fiducial.Group(rank, 2, rank, "0", CPU, store, fellows) for rank in range(2)]

    def ask(group: fiducial.Group) -> str:
        try:
            for _ in range(2):
                agreement.require(wrong if group.rank else right, lambda: right, group)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(ask, groups))
    assert said[0] == said[1]
    assert said[0].startswith("Pretended GPU of rank 1 on ") == bool(off)


def test_doctor_says_what_it_cannot_look_at(monkeypatch):
    monkeypatch.setattr(doctor, "verified", lambda _: 1 / 0)
    (found,) = doctor.of_numerics(CPU)
    assert (found.level, found.text) == (doctor.PROBLEM, "they cannot be looked at: division by zero")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    (found,) = doctor.of_numerics(torch.device("cuda", 0))
    assert (found.level, found.text) == (doctor.PROBLEM, "NVIDIA_TF32_OVERRIDE=1 leaves no float32 to compare with")


@pytest.mark.parametrize("problem", ["", "it is off"])
def test_doctor_asks_the_evaluation_too(problem, monkeypatch, tmp_path, alone, capsys):
    def load(*_: object) -> None:
        if problem:
            raise UserError(problem)

    monkeypatch.setattr("fiducial.evaluation.features.load.load_extractor", load)
    monkeypatch.setattr(doctor, "machine", lambda *_: iter(()))
    code = doctor.doctor(alone, tmp_path, None, False, of_evaluation)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " evaluation " in line)
    assert line.split() == ["problem", "evaluation", *problem.split()] if problem else line.startswith("ok ")
    assert code == bool(problem)


def test_what_is_compared_has_structure_of_all_scales():
    images = agreement.images(SimpleNamespace(image_size=None))
    assert images.shape == (64, 64, 64, 3)
    assert len({json.dumps(image[0].tolist()) for image in images}) == 64
    assert np.array_equal(images, agreement.images(SimpleNamespace(image_size=64)))
