"""The switches of float32 products: what programs around Fiducial set stays as it was, by torch's older names too."""

import numpy as np
import pytest
import torch
from conftest import run_command

from fiducial.precision import GPU_SWITCHES, SWITCHES, float32_products, plain_float32

BACKENDS = torch.backends
# As a training script may have written it before it evaluates, and what the older names then say (None: they raise).
SET_BEFORE = {
    "nothing": ("pass", ["False", "True", "highest"]),
    "the newer names": ('torch.backends.cuda.matmul.fp32_precision = "tf32"', [None, "True", None]),
    "Lightning's advice": ('torch.set_float32_matmul_precision("medium")', ["True", "True", "medium"]),
    "the older names": ("torch.backends.cuda.matmul.allow_tf32 = True", ["True", "True", "high"]),
    "all at once": ('torch.backends.fp32_precision = "tf32"', [None, "True", None]),
}
CODE = """
import numpy as np
import torch
{before}
from fiducial.precision import SWITCHES
found = [switch.fp32_precision for switch in SWITCHES]
from fiducial.evaluation import Evaluator
images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
Evaluator("digits", device="cpu", metrics=["fid"]).update(images).compute()
assert found == [switch.fp32_precision for switch in SWITCHES]
for ask in ("torch.backends.cuda.matmul.allow_tf32", "torch.backends.cudnn.allow_tf32", "torch.get_float32_matmul_precision()"):
    try:
        print(eval(ask))
    except RuntimeError:
        print(None)
"""


@pytest.mark.parametrize("who", SET_BEFORE)
def test_an_evaluation_leaves_every_switch_as_it_was(who, tmp_path):
    before, said = SET_BEFORE[who]
    done = run_command("-c", CODE.format(before=before), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [str(one) for one in said]


def test_switches_hold_inside_and_are_put_back_after_a_failure():
    before = [switch.fp32_precision for switch in SWITCHES]

    def fail() -> None:
        assert {switch.fp32_precision for switch in GPU_SWITCHES} == {"tf32"}
        with plain_float32():
            assert {switch.fp32_precision for switch in SWITCHES} == {"ieee"}
        assert BACKENDS.cudnn.conv.fp32_precision == "tf32"
        assert BACKENDS.mkldnn.matmul.fp32_precision == "ieee"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        float32_products(tf32=True)(fail)()
    assert [switch.fp32_precision for switch in SWITCHES] == before


FOLLOWING = """
import torch
from fiducial.precision import SWITCHES, plain_float32
{before}
if {used}:
    with plain_float32():
        pass
{after}
print([switch.fp32_precision for switch in SWITCHES])
"""


@pytest.mark.parametrize("before", [*(given for given, _ in SET_BEFORE.values()), 'torch.backends.cudnn.fp32_precision = "tf32"'])
def test_what_is_switched_afterwards_has_the_effect_that_it_would_have_had(before):
    """A switch that follows those above it goes on to."""
    after = 'torch.backends.fp32_precision = "ieee"\ntorch.backends.cudnn.fp32_precision = "none"'
    done = [run_command("-c", FOLLOWING.format(before=before, used=used, after=after)) for used in (True, False)]
    assert done[0].returncode == done[1].returncode == 0
    assert done[0].stdout == done[1].stdout


def test_an_evaluation_beside_a_run_has_no_kernels_chosen_by_a_race(monkeypatch):
    monkeypatch.setattr(BACKENDS.cudnn, "benchmark", True)
    with plain_float32():
        assert not BACKENDS.cudnn.benchmark
    assert BACKENDS.cudnn.benchmark


def test_products_of_a_cpu_are_float32_whatever_was_asked_for():
    """A CPU with bfloat16 multiplies float32 in it after set_float32_matmul_precision("medium")."""
    random = np.random.default_rng(0)
    x, y = (torch.from_numpy(random.normal(size=(256, 256)).astype(np.float32)) for _ in range(2))
    right = (x.double() @ y.double()).float()
    before = BACKENDS.mkldnn.matmul.fp32_precision
    try:
        BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
        with plain_float32():
            assert (x @ y - right).abs().max() < 1e-4
    finally:
        BACKENDS.mkldnn.matmul.fp32_precision = before
