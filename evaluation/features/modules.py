"""A torch.nn.Module of one's own as an extractor."""

import hashlib
import re

import torch
from torch import Tensor, nn

from fiducial import UserError
from fiducial.evaluation.features import MODULE, OWN, ExtractorSpec
from fiducial.evaluation.features.extractor import Extractor

SIZE = 299  # of the image that shows a module's dimension, where none is known


def of_module(module: nn.Module, device: torch.device, image_size: int | None = None) -> Extractor:
    """The extractor of a module that takes (N, 3, H, W) uint8 and gives features (N, D); it stays on the device that it is on.

    It is known by its class's name and the hash of its weights. Code has no hash here, so features made by it are in no cache
    that stays.

    Args:
        device: for a module without parameters.
        image_size: of an image that it takes, to see D where the module has no `num_features`.

    Raises:
        UserError: if it is in training mode, or gives something else.
    """
    name = type(module).__name__
    if module.training:
        raise UserError(f"extractor={name}(...): is in training mode, where features may depend on the batch; call .eval()")
    tensors = [*module.parameters(), *module.buffers()]
    device, digest = tensors[0].device if tensors else device, _hash(module)
    dimension = getattr(module, "num_features", None)
    if not isinstance(dimension, int):
        size = image_size or SIZE
        try:
            with torch.inference_mode():
                dimension = _checked(module(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)), name).shape[1]
        except (RuntimeError, TypeError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"extractor={name}(...): cannot take (1, 3, {size}, {size}) uint8 ({first}); convert within it, or set "
                "image_size or its num_features"
            ) from error
    spec = ExtractorSpec(
        f"{MODULE}{name}-{digest[:8]}",
        dimension,
        "",
        features=f"the features of the module {name} ({dimension:,})",
        has_logits=False,
        suffix=f"-{re.sub(r'[^A-Za-z0-9_]', '', name)}",
        distance="FD",
        comparable=False,
        resized_as=name,
    )
    OWN[spec.name] = spec
    return Extractor.of(spec, digest, device, lambda images: (_checked(module(images), name).float(), None), cpu_chunk=8)


def _checked(features: object, name: str) -> Tensor:
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"extractor={name}(...): gives {shape}, and features (N, D) are expected")
    return features


def _hash(module: nn.Module) -> str:
    """Of a module's class and weights."""
    found = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
