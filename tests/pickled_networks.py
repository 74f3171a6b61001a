"""Tiny networks in files as EDM2 and IMM publish theirs: pickles with the code of their classes, which need the makers' own."""

import pickle
import sys
from pathlib import Path

from fiducial import file_sha256

# The part of the makers' code that a pickle imports: it makes an object of a class whose source stands in the file.
PERSISTENCE = """
import types

def _reconstruct_persistent_obj(meta):
    module = types.ModuleType("imported")
    exec(meta["module_src"], module.__dict__)
    made = module.__dict__[meta["class_name"]]()
    made.__dict__.update(meta["state"])
    return made
"""
# The exact denoiser of Gaussians, one a class, as EDM2's is called: image + sigma noise and sigma to the expected image.
EDM2 = """
import torch

class Precond(torch.nn.Module):
    img_resolution, spread = 16, 0.25

    def forward(self, x, sigma, class_labels=None):
        assert sigma.dtype == torch.float32 and x.dtype == torch.float32
        mean = 0.0 if self.label_dim == 0 else ((class_labels * torch.arange(self.label_dim)).sum(1) / 5 - 0.9).view(-1, 1, 1, 1)
        variance = self.spread**2
        return (variance * x + sigma**2 * (mean + self.shift)) / (variance + sigma**2)
"""
# A network that is led in one step: the probability flow of such Gaussians on the straight path with noise of deviation 0.5.
IMM = """
import torch

class IMMPrecond(torch.nn.Module):
    img_resolution, sigma_data, T, eps, spread, temb_type = 16, 0.5, 0.994, 0.0, 0.25, "stride"

    def cfg_forward(self, x, t, s=None, class_labels=None, force_fp32=False, cfg_scale=None):
        assert t.dtype == s.dtype == x.dtype == torch.float64
        mean = 0.0
        if self.label_dim:
            mean = ((class_labels * torch.arange(self.label_dim)).sum(1) / 5 - 0.9).view(-1, 1, 1, 1)
            mean = mean * (cfg_scale or 1.0)
        of = [((1 - one) ** 2 * self.spread**2 + (one * self.sigma_data) ** 2) ** 0.5 for one in (t, s)]
        return (1 - s) * mean + of[1] / of[0] * (x - (1 - t) * mean)
"""
CLASSES = {"edm2": (EDM2, "Precond"), "imm": (IMM, "IMMPrecond")}


def write_code(folder: Path) -> Path:
    """The makers' repository, as far as their files import it."""
    (folder / "torch_utils").mkdir(parents=True)
    (folder / "torch_utils" / "__init__.py").touch()
    (folder / "torch_utils" / "persistence.py").write_text(PERSISTENCE)
    return folder


class Persistent:
    """An object that is pickled as a call of the makers' function."""

    def __init__(self, function: object, meta: dict):
        self.function, self.meta = function, meta

    def __reduce__(self) -> tuple:
        return self.function, (self.meta,)


def write_network(path: Path, code: Path, kind: str, **state: object) -> str:
    """A pickle with such a network as `ema`, and its hash.

    Args:
        code: of `write_code`.
        kind: of `CLASSES`.
        state: its attributes, beside those of its class.
    """
    source, name = CLASSES[kind]
    sys.path.insert(0, str(code))
    try:
        from torch_utils.persistence import _reconstruct_persistent_obj as function

        state = {"img_channels": 3, "label_dim": 10, "shift": 0.0} | state
        path.write_bytes(pickle.dumps({"ema": Persistent(function, {"module_src": source, "class_name": name, "state": state})}))
    finally:
        sys.path.remove(str(code))
        for module in [one for one in sys.modules if one.partition(".")[0] == "torch_utils"]:
            del sys.modules[module]
    return file_sha256(path)
