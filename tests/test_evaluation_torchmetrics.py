"""`Evaluator` as torchmetrics' users know their metrics: a module, floats, layouts, forward, sync, a state in a checkpoint."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from test_evaluation_online import from_npz, numbers, same
from test_evaluation_protocols import distance

from fiducial import UserError
from fiducial.evaluation import Evaluator
from scripts.stand_ins import pictures

COUNT = 60


@pytest.fixture(scope="module")
def images():
    return pictures(COUNT, 3)


class Means(torch.nn.Module):
    """Means of the colours in quarters of the image: 12 features."""

    def forward(self, x):
        assert x.dtype == torch.uint8
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


def quarters(images: np.ndarray) -> np.ndarray:
    blocks = images.reshape(len(images), 2, 32, 2, 32, 3).mean((2, 4), dtype=np.float64)
    return blocks.transpose(0, 3, 1, 2).reshape(len(images), 12)


def test_any_module_is_an_extractor(images, tmp_path):
    np.savez(tmp_path / "ref.npz", arr_0=pictures(80, 4))
    evaluator = Evaluator(tmp_path / "ref.npz", extractor=Means().eval(), metrics="fid,mind", device="cpu", image_size=64)
    result = evaluator.update(images).compute()
    expected = distance(quarters(images), quarters(pictures(80, 4)))
    assert result["fid"].value == pytest.approx(expected, rel=1e-4)
    assert (result["fid"].label, result.extractor["dimension"]) == ("FD-Means", 12)
    assert "the features of the module Means (12)" in result["mind"].definition


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ({}, lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)),
        ({"layout": "NHWC"}, torch.from_numpy),
        ({"layout": "NCHW"}, lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2))),
        ({"value_range": (0, 1)}, lambda x: torch.from_numpy(x).permute(0, 3, 1, 2) / 255),
        ({"value_range": (-1, 1), "layout": "NHWC"}, lambda x: torch.from_numpy(x).float() / 127.5 - 1),
        ({"value_range": (-1, 1)}, lambda x: x.astype(np.float64) / 127.5 - 1),
        ({"value_range": (0, 1)}, lambda x: x),  # uint8 stays what it is
    ],
)
def test_every_form_of_the_same_images_gives_the_same_result(form, given, images):
    """The hash of the pixels is that of the images: none is off by a level, or turned."""
    expected = Evaluator("digits", metrics="fid", device="cpu").update(images).compute()
    found = Evaluator("digits", metrics="fid", device="cpu", **form).update(given(images)).compute()
    assert found.samples["pixels_sha256"] == expected.samples["pixels_sha256"]
    assert found["fid"].value == expected["fid"].value


def test_floats_that_are_not_rounded_keep_their_fractions(images):
    exact = Evaluator("digits", metrics="fid", device="cpu", rounded=False, value_range=(0, 1)).update(images / 255).compute()
    by_levels = Evaluator("digits", metrics="fid", device="cpu", rounded=False).update(images.astype(np.float32)).compute()
    assert exact["fid"].value == pytest.approx(by_levels["fid"].value, rel=1e-5)
    assert exact.samples["rounding"] == "none"


def test_forward_gives_the_batchs_own_result_and_keeps_the_batch(images):
    evaluator = Evaluator("digits", metrics="fid", device="cpu")
    first, second = evaluator(images[:25]), evaluator.forward(images[25:])
    alone = [Evaluator("digits", metrics="fid", device="cpu").update(part).compute() for part in (images[:25], images[25:])]
    assert [first["fid"].value, second["fid"].value] == [one["fid"].value for one in alone]
    together = Evaluator("digits", metrics="fid", device="cpu").update(images).compute()
    assert evaluator.compute()["fid"].value == pytest.approx(together["fid"].value, rel=1e-9)
    evaluator.reset()
    assert evaluator.count == 0


def test_a_state_goes_into_a_checkpoint_and_comes_back(images, tmp_path):
    network = torch.nn.Linear(2, 2)
    evaluator = Evaluator("digits", metrics="fid", device="cpu").update(images[:40])
    torch.save({"model": network.state_dict(), "step": 7, "metric": evaluator.state_dict()}, tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    restored = Evaluator("digits", metrics="fid", device="cpu")
    restored.load_state_dict(checkpoint["metric"])
    evaluator.update(images[40:])
    found, expected = restored.update(images[40:]).compute(), evaluator.compute()
    assert found.samples["pixels_sha256"] == expected.samples["pixels_sha256"]
    assert found["fid"].value == expected["fid"].value


SYNC = """
import sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
from fiducial.evaluation import Evaluator

rank, images, out = int(sys.argv[1]), np.load(sys.argv[2])["arr_0"], Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
group = dist.new_group([0, 1], backend="gloo")
evaluator = Evaluator("digits", device="cpu", value_range=(0, 1), layout="NCHW")
for start in range(rank, len(images), 2 * 7):
    evaluator.update(torch.from_numpy(images[start : start + 2 * 7 : 2]).permute(0, 3, 1, 2) / 255)
own = evaluator.count
evaluator.sync(group)
try:
    evaluator.update(images[:1])
except Exception as error:
    said = str(error)
result = evaluator.compute()
kept = len(evaluator.state_dict()["indices"])
evaluator.unsync()
(out / f"{rank}.json").write_text(result.to_json())
(out / f"{rank}.txt").write_text(f"{own} {kept} {evaluator.count}|{said}")
dist.barrier(group)
dist.destroy_process_group()
"""


def test_sync_gives_every_rank_of_a_gloo_group_the_result_of_all(images, tmp_path):
    (tmp_path / "script.py").write_text(SYNC)
    np.savez(tmp_path / "images.npz", arr_0=images)
    start = "runs = [subprocess.Popen([sys.executable, sys.argv[1], str(rank), *sys.argv[2:]]) for rank in (0, 1)]"
    both = f"import subprocess, sys\n{start}\nsys.exit(any([run.wait() for run in runs]))"
    done = run_command("-c", both, tmp_path / "script.py", tmp_path / "images.npz", tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    expected = from_npz(tmp_path / "images.npz")
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert same(found["metrics"], numbers(expected)["metrics"])
        assert found["samples"]["pixels_sha256"] == expected.samples["pixels_sha256"]
        counts, said = (tmp_path / f"{rank}.txt").read_text().split("|")
        assert counts == "30 30 30"
        assert said == "update: the evaluator is synced, and holds other ranks' images; call unsync() first"


@pytest.mark.parametrize(
    ("given", "batch", "said"),
    [
        ({"layout": "CHWN"}, None, "layout='CHWN': must be NCHW or NHWC"),
        ({"value_range": (0, 255)}, None, r"value_range=\(0, 255\): must be \(0, 1\) or \(-1, 1\)"),
        ({"layout": "NCHW"}, np.zeros((2, 64, 64, 3), np.uint8), r"expected as NCHW, \(N, 3, H, W\); got \(2, 64, 64, 3\)"),
        ({"layout": "NHWC"}, torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"expected as NHWC, \(N, H, W, 3\); got"),
        ({"value_range": (0, 1)}, torch.full((2, 3, 64, 64), 1.5), "expected from 0 to 1, as value_range says; got 1.5 to 1.5"),
        ({"value_range": (0, 1)}, torch.full((2, 3, 64, 64), torch.nan), "expected from 0 to 1"),
        ({"value_range": (0, 1)}, torch.zeros(2, 64, 64, 3), r"tensor \(N, 3, H, W\)"),
        ({"metrics": "fid,fdr6"}, None, "--metrics fdr6: takes six networks, and online there is one"),
        ({"extractor": Means()}, None, "is in training mode, where features may depend on the batch"),
        ({"extractor": torch.nn.Linear(2, 2).eval()}, None, r"cannot take \(1, 3, 299, 299\) uint8"),
        ({"extractor": torch.nn.Identity().eval()}, None, r"gives \(1, 3, 299, 299\), and features \(N, D\) are expected"),
    ],
)
def test_what_is_of_another_form_is_told_in_one_sentence(given, batch, said):
    with pytest.raises((UserError, ValueError), match=said) as refused:
        Evaluator("digits", **{"metrics": "fid", "device": "cpu"} | given).update(batch)
    assert "\n" not in str(refused.value)


def test_syncing_without_a_group_is_refused(images):
    evaluator = Evaluator("digits", metrics="fid", device="cpu").update(images)
    with pytest.raises(UserError, match="there is no process group"):
        evaluator.sync()
    with pytest.raises(UserError, match="not synced"):
        evaluator.unsync()
