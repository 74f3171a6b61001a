"""From image files to numbers, against torch-fidelity and oracles; over ranks, batch sizes and caches."""

import io
import itertools
import json
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from conftest import ROOT, run_command
from PIL import Image, ImageFilter
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

import fiducial
from fiducial.evaluation import __main__ as cli
from fiducial.evaluation import evaluate as calc
from fiducial.evaluation import making
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features import extraction
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.metrics import inception_score, neighbours
from fiducial.evaluation.metrics.inception_score import looks_sorted
from fiducial.evaluation.metrics.neighbours import neighbourhoods
from fiducial.evaluation.settings import Settings
from scripts.stand_ins import pictures, write_pngs

COUNT = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of PNGs, `a` and `b`."""
    root = tmp_path_factory.mktemp("images")
    for name, seed in (("a", 0), ("b", 1)):
        write_pngs(root / name, pictures(COUNT, seed))
    return root


def evaluate(samples, reference, weights=None, group=None, extractor=None, **settings) -> dict[str, float]:
    """The values of one evaluation by metric."""
    evaluator = Evaluation.prepare(
        str(reference), group or fiducial.init("cpu"), Settings(**settings), extractor, weights and {"inception": weights}
    )
    return {name: metric.value for name, metric in evaluator.evaluate(samples).metrics.items()}


@pytest.fixture(scope="module")
def theirs(folders, inception_weights):
    """torch-fidelity's numbers, made as its users make them."""
    return torch_fidelity.calculate_metrics(
        input1=str(folders / "a"),
        input2=str(folders / "b"),
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=20,
        cuda=False,
        verbose=False,
        cache=False,
        batch_size=8,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
    )


def test_all_metrics_are_torch_fidelitys(folders, inception_weights, theirs):
    ours = evaluate(folders / "a", folders / "b", inception_weights, protocol="torch-fidelity", kid_subset_size=20, batch_size=7)
    names = {"fid": "frechet_inception_distance", "is": "inception_score_mean", "kid": "kernel_inception_distance_mean"}
    for name, their_name in names.items():
        assert ours[name] == pytest.approx(theirs[their_name], rel=1e-4), name
    shares = {"precision": "precision", "recall": "recall", "f-score": "f_score"}
    assert [ours[name] for name in shares] == pytest.approx([theirs[name] for name in shares.values()], abs=1e-6)
    assert theirs["frechet_inception_distance"] > 1
    assert theirs["inception_score_mean"] > 1.2
    assert set(ours) == {"fid", "is", "kid", *shares, "density", "coverage"}


def test_all_metrics_are_adms(folders, inception_weights, theirs, monkeypatch):
    """An oracle in numpy over torch-fidelity's network, with blocks of 10 images in the place of 5,000."""
    monkeypatch.setattr(inception_score, "ADM_IS_BLOCK", 10)
    network = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    spatial, logits = {}, {}
    with torch.inference_mode():
        for name in "ab":
            caught = []
            hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output, caught=caught: caught.append(output))
            files = np.stack([np.asarray(Image.open(path)) for path in sorted((folders / name).iterdir())])
            logits[name] = network(torch.from_numpy(files).permute(0, 3, 1, 2))[0].double().numpy()
            hook.remove()
            spatial[name] = caught[0].numpy().astype(np.float64)

    def fid(one, other):
        product = np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)
        roots = np.sqrt(np.maximum(scipy.linalg.eigvals(product).real, 0)).sum()
        traces = np.trace(np.cov(one, rowvar=False)) + np.trace(np.cov(other, rowvar=False))
        return ((one.mean(0) - other.mean(0)) ** 2).sum() + traces - 2 * roots

    sfid = fid(*(spatial[name][:, :7].transpose(0, 2, 3, 1).reshape(COUNT, -1) for name in "ab"))
    blocks = [logits["a"][start : start + 10] for start in range(0, COUNT, 10)]
    p = [np.exp(block) / np.exp(block).sum(1, keepdims=True) for block in blocks]
    expected = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in p]

    ours = evaluate(folders / "a", folders / "b", inception_weights)
    assert ours["sfid"] == pytest.approx(sfid, rel=1e-4)
    assert ours["is"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert set(ours) == {"fid", "sfid", "is", "is-shuffled", "precision", "recall", "density", "coverage"}
    more = np.exp(logits["a"]) / np.exp(logits["a"]).sum(1, keepdims=True)
    order = np.random.default_rng(0).permutation(COUNT)
    shuffled = [more[order[start : start + 10]] for start in range(0, COUNT, 10)]
    mixed = np.mean([np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in shuffled])
    assert ours["is-shuffled"] == pytest.approx(mixed, rel=1e-4)
    assert abs(mixed - ours["is"]) > 1e-3
    one_block = np.exp((more * (np.log(more) - np.log(more.mean(0)))).sum(1).mean())
    assert abs(one_block - np.mean(expected)) > 1e-3  # other blocks would show


def test_a_channel_first_sfid_would_show(folders, inception_weights, alone, monkeypatch, tmp_path):
    """A port that forgets the order, against a file of ADM's."""
    load = load_extractor
    made = making.make_reference(
        open_images(folders / "b"), load("inception", {"inception": inception_weights}, alone), alone, Settings(), 0
    )
    np.savez(tmp_path / "adm.npz", **{name: getattr(made, name) for name in ("mu", "sigma", "mu_s", "sigma_s")})
    expected = evaluate(folders / "a", tmp_path / "adm.npz", inception_weights, metrics=("sfid",))["sfid"]
    assert expected == pytest.approx(
        evaluate(folders / "a", folders / "b", inception_weights, metrics=("sfid",))["sfid"], rel=1e-9
    )

    def channels_first(*arguments):
        extractor = load(*arguments)

        def apply(pixels):
            pool, spatial = extractor.apply(pixels)
            return pool, spatial.reshape(-1, 17, 17, 7).permute(0, 3, 1, 2).flatten(1)

        return Extractor(**vars(extractor) | {"apply": apply, "weights_sha256": "of its own in the cache"})

    monkeypatch.setattr(calc, "load_extractor", channels_first)
    assert evaluate(folders / "a", tmp_path / "adm.npz", inception_weights, metrics=("sfid",))["sfid"] > 1.05 * expected


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [64, 1, 17])
def test_numbers_do_not_depend_on_the_batch_size(batch_size, folders, inception_weights, tmp_path):
    """Features are the same bits; the sums over them are made in another order."""
    expected, found = (
        evaluate(folders / "a", folders / "b", inception_weights, batch_size=size, cache_dir=tmp_path / str(size))
        for size in (5, batch_size)
    )
    assert found == pytest.approx(expected, rel=1e-10)
    assert len(list(tmp_path.glob("*/*/features.f32"))) == 4
    for path in (tmp_path / "5").glob("*/features.f32"):
        assert path.read_bytes() == (tmp_path / str(batch_size) / path.relative_to(tmp_path / "5")).read_bytes()


def calc_here(*arguments: object) -> None:
    """`python -m evaluation calc` in this process."""
    cli.run(cli.build_parser().parse_args(["calc", *map(str, arguments)]))


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_give_the_same_numbers(ranks, folders, inception_weights, tmp_path):
    common = [folders / "a", "--ref", folders / "b", "--inception-weights", inception_weights, "--batch-size", 4]
    common += ["--metrics", "fid,sfid,is,precision,recall,kid", "--kid-subset-size", 20]
    calc_here(*common, "--json", tmp_path / "1.json", "--cache-dir", tmp_path / "cache1")
    several = ["--json", tmp_path / "several.json", "--cache-dir", tmp_path / "cache"]
    done = run_command("-m", "evaluation", "calc", *common, *several, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("precision") for line in done.stdout.splitlines()) == 1
    one, result = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1", "several"))
    assert (one["settings"]["world_size"], result["settings"]["world_size"]) == (1, ranks)
    assert result["samples"] == one["samples"]
    for name, metric in result["metrics"].items():
        assert metric["value"] == pytest.approx(one["metrics"][name]["value"], rel=1e-9), name


def test_a_rank_that_fails_ends_all_in_one_sentence(folders, tmp_path):
    """The last image, which the last rank reads, is cut."""
    broken = shutil.copytree(folders / "a", tmp_path / "broken")
    last = sorted(broken.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-300])
    arguments = ["calc", broken, "--extractor", "digits", "--metrics", "is", "--batch-size", 4, "--cache-dir", tmp_path / "cache"]
    done = run_command("-m", "evaluation", *arguments, ranks=2)
    assert done.returncode != 0
    assert done.stderr.partition("Traceback")[0].count("cannot be read as an image") == 1
    assert last.name in done.stderr.partition("Root Cause")[2]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tmp"]


PIECES = {
    "neighbours.TILE": 7,
    "neighbours.ADM_BLOCK": 40,
    "intervals.ROWS": 9,
    "fid_infinity.ROWS": 9,
    "vendi.ROWS": 9,
    "inception_score.ADM_IS_BLOCK": 10,
    "inception_score.LOGITS_CHUNK": 4,
}
IN_PIECES = f"""
import sys
from fiducial.evaluation import __main__ as cli
from fiducial.evaluation.metrics import fid_infinity, inception_score, intervals, neighbours, vendi
{", ".join(PIECES)} = {tuple(PIECES.values())}
cli.run(cli.build_parser().parse_args(sys.argv[1:]))
"""


def test_ranks_share_tiles_blocks_and_subsets_out(tmp_path, monkeypatch):
    """With tiles and blocks so small that three ranks have many each; and what float16 changes."""
    (tmp_path / "pieces.py").write_text(IN_PIECES)
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(95, seed))
    values = {}
    for ranks, half in ((1, False), (3, False), (1, True), (3, True)):
        arguments = [tmp_path / "a.npz", "--ref", tmp_path / "b.npz", "--extractor", "digits", "--batch-size", 8]
        options = ["--metrics", "fid,is,precision,recall,f-score,mind,density,coverage,vendi,kid", "--kid-subset-size", 30]
        options += ["--json", tmp_path / "r.json", "--cache-dir", tmp_path / "cache", *(["--fp16-compat"] if half else [])]
        if ranks == 1:
            with monkeypatch.context() as patch:
                for name, value in PIECES.items():
                    patch.setattr(f"fiducial.evaluation.metrics.{name}", value)
                calc_here(*arguments, *options)
        else:
            done = run_command(tmp_path / "pieces.py", "calc", *arguments, *options, ranks=ranks, PYTHONPATH=str(ROOT))
            assert done.returncode == 0, done.stderr
        metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
        values[ranks, half] = {name: metric["value"] for name, metric in metrics.items()}
        values[ranks, half] |= {f"{name}'s {end}": metric[end] for name, metric in metrics.items() for end in ("low", "high")}
    for half in (False, True):
        assert values[3, half] == pytest.approx(values[1, half], rel=1e-12)
    group = fiducial.init("cpu")
    rows = [extracted(tmp_path / f"{name}.npz", group, tmp_path / "cache") for name in "ab"]
    for half in (False, True):
        found = vars(neighbourhoods(rows[1], rows[0], group, half))
        for name, estimate in found.items():
            assert values[3, half][f"{name.replace('_', '-')}-digits"] == pytest.approx(estimate.value), name
    assert len({value for name, value in values[1, False].items() if "'s" not in name}) == 11


def extracted(path, group, cache) -> np.ndarray:
    """The digits extractor's features of an npz."""
    return extraction.extract(open_images(path), load_extractor("digits", None, group), group, 8, cache).rows


class Counting:
    """An extractor that counts the images it is given; those that fill its last chunk up are none."""

    def __init__(self, group):
        self.images = 0

        class Counted(Extractor):
            def run(extractor, batch):
                self.images += len(batch)
                return super().run(batch)

        self.extractor = Counted(**vars(load_extractor("digits", None, group)))


def test_a_further_metric_costs_no_second_pass(folders, tmp_path, alone, monkeypatch):
    counting = Counting(alone)
    monkeypatch.setattr(calc, "load_extractor", lambda *_: counting.extractor)
    settings = {"cache_dir": tmp_path, "kid_subset_size": 10, "extractor": "digits"}
    first = evaluate(folders / "a", folders / "b", group=alone, metrics=("fid", "is"), **settings)
    assert counting.images == 2 * COUNT
    second = evaluate(folders / "a", folders / "b", group=alone, metrics=("fid", "precision", "kid"), **settings)
    assert counting.images == 2 * COUNT
    assert second["fid-digits"] == first["fid-digits"]
    np.savez(tmp_path / "same.npz", arr_0=pictures(COUNT, 0))
    third = evaluate(tmp_path / "same.npz", folders / "b", group=alone, metrics=("fid",), **settings)
    assert counting.images == 3 * COUNT  # other bytes, though the same pixels
    assert third["fid-digits"] == first["fid-digits"]


@pytest.mark.parametrize("change", ["crop", "dtype", "weights_sha256", "batch_size", "nothing"])
def test_features_are_not_taken_for_those_of_other_settings(change, folders, tmp_path, alone):
    counting = Counting(alone)
    stub = Extractor(**vars(counting.extractor) | {"apply": lambda x: (x.flatten(1)[:, :64].float(), None)})
    first = extraction.extract(open_images(folders / "a", 32), stub, alone, 4, tmp_path)
    images = open_images(folders / "a", 16 if change == "crop" else 32)
    other = Extractor(**vars(stub) | ({change: "bfloat16"} if change in ("dtype", "weights_sha256") else {}))
    second = extraction.extract(images, other, alone, 5 if change == "batch_size" else 4, tmp_path)
    assert (second.origin == "from the cache") == (change in ("nothing", "batch_size"))  # of which features are free
    assert first.origin == "computed"


@pytest.mark.parametrize("damage", ["flipped", "cut", "about", "pixels", "statistics"])
def test_a_damaged_cache_is_computed_again(damage, folders, tmp_path, alone, monkeypatch):
    counting = Counting(alone)
    monkeypatch.setattr(calc, "load_extractor", lambda *_: counting.extractor)
    expected = evaluate(folders / "a", folders / "b", group=alone, extractor="digits", cache_dir=tmp_path)
    names = {"about": "about.json", "pixels": "pixels.sha256", "statistics": "statistics.npz"}
    victim = next(tmp_path.glob(f"*/{names.get(damage, 'features.f32')}"))
    data = bytearray(victim.read_bytes())
    if damage != "cut" and damage != "about":
        data[100] ^= 1
    victim.write_bytes(data[: len(data) - 40 if damage in ("cut", "about") else None])
    assert evaluate(folders / "a", folders / "b", group=alone, extractor="digits", cache_dir=tmp_path) == expected
    assert counting.images == 3 * COUNT
    assert not list(tmp_path.glob("*.tmp"))
    evaluate(folders / "a", folders / "b", group=alone, extractor="digits", cache_dir=tmp_path)
    assert counting.images == 3 * COUNT


def test_without_keeping_features_nothing_is_left(folders, tmp_path, alone, monkeypatch):
    counting = Counting(alone)
    monkeypatch.setattr(calc, "load_extractor", lambda *_: counting.extractor)
    evaluate(folders / "a", folders / "b", group=alone, extractor="digits", cache_dir=tmp_path, keep_features=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(neighbours, "neighbourhoods", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(folders / "a", folders / "b", group=alone, extractor="digits", cache_dir=tmp_path, keep_features=False)
    assert not list(tmp_path.iterdir())


def test_a_failed_pass_leaves_nothing_in_the_cache(folders, tmp_path, alone):
    shutil.copytree(folders / "a", tmp_path / "broken")
    (tmp_path / "broken" / "000020.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    extractor = load_extractor("digits", None, alone)
    with pytest.raises(fiducial.UserError, match=r"000020\.png"):
        extraction.extract(open_images(tmp_path / "broken"), extractor, alone, 4, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_features_that_are_not_finite_are_named(folders, tmp_path, alone):
    extractor = Extractor(
        "stub", 4, "0", alone.device, lambda x: (torch.full((len(x), 4), torch.nan), None), lambda features: features
    )
    with pytest.raises(fiducial.UserError, match="features of image 0 are not finite"):
        extraction.extract(open_images(folders / "a"), extractor, alone, 4, tmp_path)


def distorted(kind: str, strength: int, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Pictures made worse, in three strengths."""
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, (8, 20, 48)[strength], pixels.shape)
        return (pixels + noise).clip(0, 255).astype(np.uint8)
    if kind == "classes":  # some are never drawn, their places taken by the others
        kept = pixels[classes >= (2, 5, 8)[strength]]
        return kept[np.arange(len(pixels)) % len(kept)]
    result = []
    for image in map(Image.fromarray, pixels):
        if kind == "blur":
            image = image.filter(ImageFilter.GaussianBlur((0.5, 1, 3)[strength]))
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=(60, 20, 5)[strength])
            image = Image.open(buffer)
        result.append(np.asarray(image))
    return np.stack(result)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["noise", "blur", "jpeg", "classes"])
def test_fid_rises_with_every_distortion(kind, inception_weights, alone, tmp_path):
    """On pictures of ten classes, told apart by their colours."""
    random = np.random.default_rng(0)
    classes = np.arange(40) % 10
    hues = random.uniform(-70, 70, (10, 1, 1, 3))
    texture = random.normal(0, 12, (40, 64, 64, 3))
    clean = (pictures(40, 0) * 0.5 + 64 + hues[classes] + texture).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "clean.npz", arr_0=clean)
    values = [0.0]
    for strength in range(3):
        np.savez(tmp_path / f"{strength}.npz", arr_0=distorted(kind, strength, clean, classes))
        found = evaluate(
            tmp_path / f"{strength}.npz", tmp_path / "clean.npz", inception_weights, alone, metrics=("fid",), batch_size=20
        )
        values.append(found["fid"])
    assert all(worse > 1.03 * better for better, worse in itertools.pairwise(values)), values


@pytest.mark.parametrize("kind", ["statistics", pytest.param("images", marks=pytest.mark.long)])
def test_what_bfloat16_does_to_fid_is_said(kind, inception_weights, alone, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(4, seed))
    reference = tmp_path / "b.npz"
    if kind == "statistics":
        reference = tmp_path / "pf.npz"
        np.savez(reference, mu=np.zeros(2048), sigma=np.eye(2048))
    settings = {"metrics": ("fid",), "batch_size": 4}
    evaluator = Evaluation.prepare(
        str(reference), alone, Settings(dtype="bfloat16", **settings), None, {"inception": inception_weights}
    )
    result = evaluator.evaluate(tmp_path / "a.npz")
    exact = evaluate(tmp_path / "a.npz", reference, inception_weights, **settings)["fid"]
    (note,) = [text for text in result.warnings if text.startswith("In bfloat16")]
    assert f" is {result.metrics['fid'].value:.4f}, and {exact:.4f} in float32" in note
    assert "the network ran in bfloat16" in result.metrics["fid"].deviations
    assert result.metrics["fid"].value != exact


@pytest.mark.parametrize(
    ("predicted", "expected"), [("sorted", True), ("mostly sorted", True), ("random", False), ("one", False)]
)
def test_predictions_in_runs_look_sorted(predicted, expected):
    random = np.random.default_rng(0)
    classes = np.repeat(np.arange(50), 20)
    found = {
        "sorted": classes,
        "mostly sorted": np.where(random.random(1000) < 0.6, classes, random.integers(0, 50, 1000)),
        "random": random.permutation(classes),
        "one": np.zeros(1000),
    }[predicted]
    assert looks_sorted(found) == expected
    assert not looks_sorted(found[:1])


def test_a_file_sorted_by_class_without_labels_is_noticed(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(inception_score, "ADM_IS_BLOCK", 50)
    hues = np.repeat(pictures(5, 3, 64)[:, :1, :1], 40, axis=0)
    pixels = np.broadcast_to(hues, (200, 64, 64, 3)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(200)
    notes = []
    for name, chosen in (("sorted", pixels), ("shuffled", pixels[order])):
        np.savez(tmp_path / f"{name}.npz", arr_0=chosen)
        evaluator = Evaluation.prepare(None, alone, Settings(metrics=("is",)), "digits")
        notes.append("".join(evaluator.evaluate(tmp_path / f"{name}.npz").warnings))
    assert "the IS is too low" in notes[0]
    assert "sorted by class" not in notes[1]
    evaluator = Evaluation.prepare(None, alone, Settings(metrics=("is",), protocol="torch-fidelity"), "digits")
    assert not any("sorted" in text for text in evaluator.evaluate(tmp_path / "sorted.npz").warnings)
