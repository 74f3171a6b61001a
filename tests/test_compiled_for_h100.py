"""The code that inductor writes of the network for a GPU, as far as that can be seen without one."""

import json

import pytest
from conftest import run_command


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_network_is_one_graph_that_stays_on_the_gpu(precision):
    """A graph break, or a number that is made on the host, costs each step, and CUDA graphs altogether."""
    done = run_command("tests/compiled_for_h100.py", precision, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "graphs": 1,
        "devices": ["cuda:0"],
        "no CUDA graph because": None,
        "kernels on the host": [],
        "has kernels": True,
        "waits": 0,
    }
