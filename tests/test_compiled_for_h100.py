"""The code that inductor writes of the network for a GPU, as far as that can be seen without one."""

import json

from conftest import run_command


def test_a_network_is_one_graph_that_stays_on_the_gpu():
    """A graph break, or a number that is made on the host, costs each step, and CUDA graphs altogether."""
    done = run_command("tests/compiled_for_h100.py", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "graphs": 1,
        "devices": ["cuda:0"],
        "no CUDA graph because": None,
        "kernels on the host": [],
        "has kernels": True,
        "waits": 0,
    }
