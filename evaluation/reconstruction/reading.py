"""Results of `fiducial reconstruct` as a comparison takes them."""

from fiducial.evaluation.reconstruction.result import Reconstruction
from fiducial.evaluation.results.form import Unexpected

Value = str | int | float | bool | list | None
OPTIONAL = ("reference SHA-256", "extractor", "weights SHA-256", "LPIPS weights", "LPIPS-VGG weights")  # without some metric
HOW = ("posterior", "seed", "precision", "rounding")  # a codec is run
DIGITS = 8  # of a hash, in the name of a codec


def basis_of(result: Reconstruction) -> dict[str, Value]:
    """The facts that two results have to share before they can be compared, None for what a result lacks; by their names.

    Raises:
        Unexpected: if one is missing, or no text or number where it should be.
    """
    found = {
        "originals SHA-256": _part(result.originals, ("originals", "pixels_sha256"), str),
        "N": _part(result.originals, ("originals", "count"), int),
        "image size": _part(result.originals, ("originals", "image_size"), list),
        "protocol": _part(result.settings, ("settings", "protocol"), str),
    }
    of_distance = {"reference SHA-256": ("reference", "sha256"), "extractor": ("extractor", "name")}
    of_distance |= {"weights SHA-256": ("extractor", "weights_sha256")}
    for name, where in of_distance.items():
        part = getattr(result, where[0])
        found[name] = None if part is None else _part(part, where, str)
    for name, label in (("lpips", "LPIPS weights"), ("lpips-vgg", "LPIPS-VGG weights")):
        network = result.perceptual.get(name)
        hashes = _part(network, ("perceptual", name, "sha256"), dict) if network is not None else {}
        found[label] = " ".join(map(str, hashes.values())) or None
    return found


def identity_of(result: Reconstruction) -> dict[str, Value]:
    """The codec, with the first digits of its weights' hash, and how it was run: by the names that rows may be called by."""
    codec = result.codec
    found = {"vae": f"{_part(codec, ('codec', 'vae'), str)} {_part(codec, ('codec', 'vae_sha256'), str)[:DIGITS]}"}
    found |= {name: codec.get(name) for name in HOW}
    for name, value in found.items():
        if not isinstance(value, str | int | None):
            raise Unexpected(("codec", name), value)
    return found


def pixels_of(result: Reconstruction) -> str:
    """The hash of the reconstructions' pixels."""
    return _part(result.codec, ("codec", "pixels_sha256"), str)


def _part(part: dict, where: tuple[str, ...], kind: type) -> Value:
    name = where[-1]
    if name not in part:
        raise Unexpected(where, missing=True)
    if not isinstance(part[name], kind) or isinstance(part[name], bool):
        raise Unexpected(where, part[name])
    return part[name]
