"""Scoring without files of images: the same numbers as from an npz, for any number of ranks and any batches."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from PIL import Image

import fiducial
from fiducial import UserError
from fiducial.evaluation import Evaluator
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.report import report_page
from fiducial.evaluation.report.gallery import gallery_html
from fiducial.evaluation.settings import Settings
from scripts.stand_ins import pictures

COUNT = 660  # enough for every metric
CLOSE = 1e-9  # of a number of order one; only sums in another order differ


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """An npz of digit-sized images with labels."""
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, arr_0=pictures(COUNT, 3), arr_1=np.arange(COUNT) % 7)
    return path


@pytest.fixture(scope="module")
def arrays(samples):
    with np.load(samples) as data:
        return data["arr_0"], data["arr_1"]


def numbers(result) -> dict:
    """All that must be the same of two results, as JSON has it."""
    data = json.loads(result.to_json())
    return {name: data.get(name) for name in ("metrics", "warnings", "left_out", "reference", "extractor", "curve", "classes")}


def same(one, other) -> bool:
    """Whether two such are equal but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == (pytest.approx(other, rel=CLOSE, abs=CLOSE) if isinstance(one, float) else other)


def from_npz(samples, ref="digits", weights=None, **settings):
    return Evaluation.prepare(ref, fiducial.init("cpu"), Settings(**settings), None, weights and {"inception": weights}).evaluate(
        samples
    )


@pytest.mark.parametrize("size", [7, 64, COUNT])
def test_the_result_is_that_of_an_npz_for_any_batches(size, samples, arrays, tmp_path):
    images, labels = arrays
    evaluator = Evaluator("digits", settings=Settings(cache_dir=tmp_path), name="of an epoch")
    for start in range(0, COUNT, size):
        batch = images[start : start + size]
        evaluator.update(torch.from_numpy(batch).permute(0, 3, 1, 2) if start % 2 else batch, labels=labels[start : start + size])
    result, expected = evaluator.compute(), from_npz(samples)
    assert same(numbers(result), numbers(expected))
    assert result.samples["pixels_sha256"] == expected.samples["pixels_sha256"]
    assert result.samples["labels"] == expected.samples["labels"]
    assert result.samples["path"] == "of an epoch"
    assert [(label, list(row)) for label, row in result.grid.rows] == [(label, list(row)) for label, row in expected.grid.rows]
    assert gallery_html(result.grid, None) == gallery_html(expected.grid, None)
    assert not list(tmp_path.iterdir())


def test_another_image_or_order_would_show(arrays, samples):
    images, _ = arrays
    expected = from_npz(samples)
    changed = images.copy()
    changed[17, 0, 0, 0] ^= 255
    result = Evaluator("digits").update(changed).compute()
    assert not same(numbers(result)["metrics"], numbers(expected)["metrics"])
    result = Evaluator("digits").update(images[::-1].copy()).compute()
    assert result.samples["pixels_sha256"] != expected.samples["pixels_sha256"]


ON_RANKS = """
import sys
import numpy as np
from pathlib import Path
import fiducial
from fiducial.evaluation import Evaluator
from fiducial.evaluation.settings import Settings
from fiducial.evaluation.report.gallery import gallery_html

samples, ref, weights, out, metrics = sys.argv[1:]
with fiducial.init("cpu") as group:
    images, labels = (np.load(samples)[name] for name in ("arr_0", "arr_1"))
    settings = Settings(cache_dir=Path(out).parent / "cache", metrics=tuple(metrics.split(",")) if metrics else None)
    evaluator = Evaluator(ref, group, settings, weights={"inception": weights} if weights else None)
    for number, start in enumerate(range(0, len(images), 8)):
        if number % group.world_size == group.rank:
            indices = np.arange(start, min(start + 8, len(images)))
            evaluator.update(images[indices], indices, labels[indices])
    for _ in range(2):  # the second time from the same state
        result = evaluator.compute()
    if result:
        Path(out).write_text(result.to_json())
"""


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_score_together_what_one_would(ranks, samples, tmp_path):
    (tmp_path / "script.py").write_text(ON_RANKS)
    out = tmp_path / "result.json"
    done = run_command(tmp_path / "script.py", samples, "digits", "", out, "", ranks=ranks, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(out.read_text()), from_npz(samples)
    assert same({name: found.get(name) for name in numbers(expected)}, numbers(expected))
    assert found["samples"]["pixels_sha256"] == expected.samples["pixels_sha256"]
    assert found["settings"]["world_size"] == ranks


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_inception_and_its_spatial_features(ranks, inception_weights, tmp_path):
    (tmp_path / "script.py").write_text(ON_RANKS)
    np.savez(tmp_path / "a.npz", arr_0=pictures(20, 5), arr_1=np.arange(20) % 3)
    np.savez(tmp_path / "b.npz", arr_0=pictures(20, 6))
    out, metrics = tmp_path / "result.json", "fid,sfid,is,precision"
    arguments = tmp_path / "a.npz", tmp_path / "b.npz", inception_weights, out, metrics
    done = run_command(tmp_path / "script.py", *arguments, ranks=ranks, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    expected = from_npz(tmp_path / "a.npz", str(tmp_path / "b.npz"), inception_weights, metrics=tuple(metrics.split(",")))
    assert same(json.loads(out.read_text())["metrics"], numbers(expected)["metrics"])
    assert set(numbers(expected)["metrics"]) == {"fid", "sfid", "is", "is-shuffled", "precision"}


def test_states_are_saved_loaded_and_merged(arrays, samples, tmp_path):
    images, labels = arrays
    first, second = Evaluator("digits"), Evaluator("digits")
    first.update(images[:40], np.arange(40), labels[:40])
    second.update(images[40:], np.arange(40, COUNT), labels[40:])
    torch.save(second.state_dict(), tmp_path / "state.pt")
    restored = Evaluator("digits").update(images[:3])
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.count == COUNT - 40
    merged = first.merge(restored)
    assert merged.count == COUNT
    assert restored.count == COUNT - 40
    result, expected = merged.compute(), from_npz(samples)
    assert same(numbers(result), numbers(expected))
    assert gallery_html(result.grid, None) == gallery_html(expected.grid, None)
    merged.reset()
    assert merged.count == 0
    with pytest.raises(UserError, match="no image was given"):
        merged.compute()


def test_images_go_on_after_a_result(arrays, samples):
    images, labels = arrays
    evaluator = Evaluator("digits").update(images[:50], labels=labels[:50])
    assert evaluator.compute().samples["count"] == 50
    evaluator.update(images[50:], labels=labels[50:])
    assert same(numbers(evaluator.compute()), numbers(from_npz(samples)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (torch.zeros(2, 3, 64, 64),),
            r"expected as uint8 .* 0 to 0: give \(images \* 255\)\.round\(\)\.clip\(0, 255\)\.byte\(\)",
        ),
        ((np.full((2, 64, 64, 3), -0.5),), r"-0\.5 to -0\.5: give \(\(images \+ 1\) \* 127\.5\)"),
        ((torch.zeros(2, 64, 64, 3, dtype=torch.uint8),), "expected as uint8"),
        ((np.zeros((2, 3, 64, 64), np.uint8),), "expected as a uint8"),
        (([1, 2],), "got list"),
        ((np.zeros((2, 64, 64, 3), np.uint8), np.array([0])), "indices expected as 2 integers"),
        ((np.zeros((2, 64, 64, 3), np.uint8), np.array([0, -1])), "indices expected as 2 integers"),
        ((np.zeros((2, 64, 64, 3), np.uint8), None, np.array([0.5, 1])), "labels expected as 2 integers"),
        ((np.zeros((2, 32, 32, 3), np.uint8),), "images of 32 x 32 after others of 64 x 64"),
    ],
)
def test_what_are_no_images_is_refused_and_nothing_is_kept(arguments, said, arrays):
    evaluator = Evaluator("digits").update(arrays[0][:4])
    with pytest.raises(ValueError, match=said):
        evaluator.update(*arguments)
    assert evaluator.count == 4


def test_mistakes_are_told(arrays):
    images, _ = arrays
    with pytest.raises(UserError, match="takes 64 x 64 only"):
        Evaluator("digits").update(np.zeros((2, 32, 32, 3), np.uint8))
    evaluator = Evaluator("digits").update(images[:4], np.array([0, 1, 2, 1]))
    with pytest.raises(UserError, match="image 1 was given twice"):
        evaluator.compute()
    with pytest.raises(UserError, match="FID needs at least 2 images"):
        Evaluator("digits").update(images[:1]).compute()
    state = Evaluator("digits").update(images[:4]).state_dict()
    for broken in ({}, {**state, "features": state["features"][:2]}, {**state, "extractor": "dinov2 00"}, 7):
        with pytest.raises(ValueError, match="state"):
            Evaluator("digits").load_state_dict(broken)
    with pytest.raises(UserError, match="--ref nothing: no such file"):
        Evaluator("nothing")


def test_only_what_the_report_shows_is_kept_of_the_images(arrays):
    images, labels = arrays
    evaluator = Evaluator("digits")
    evaluator.expect(labels)
    evaluator.update(images, labels=labels)
    assert len(evaluator.state_dict()["kept"]) == 70  # ten of each of seven classes
    assert len(Evaluator("digits").update(images, labels=np.arange(COUNT)).state_dict()["kept"]) == 100  # one of each of so many
    few = Evaluator("digits").update(images[:90])
    assert len(few.state_dict()["kept"]) == 90
    assert len(few.update(images).state_dict()["kept"]) == 100


IN_A_LOOP = """
import os, sys
import numpy as np, torch, torch.distributed as dist
import fiducial
from fiducial.evaluation import Evaluator
from pathlib import Path

dist.init_process_group("gloo")  # as a training script does before
rank, world_size = dist.get_rank(), dist.get_world_size()
images, labels = np.load(sys.argv[1]).values()
evaluator = Evaluator("digits")
for epoch in range(2):
    evaluator.update(images[rank::world_size], labels=labels[rank::world_size])  # the ranks' images take turns
    result = evaluator.compute()
    evaluator.reset()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == world_size  # the loop's own group is as it was
if rank == 0:
    Path(sys.argv[2]).write_text(result.to_json())
dist.destroy_process_group()
"""


def test_it_serves_a_training_loop_with_a_process_group_of_its_own(samples, tmp_path):
    (tmp_path / "loop.py").write_text(IN_A_LOOP)
    done = run_command(tmp_path / "loop.py", samples, tmp_path / "result.json", ranks=2, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    found, expected = json.loads((tmp_path / "result.json").read_text()), from_npz(samples)
    assert same(found["metrics"], numbers(expected)["metrics"])
    assert found["samples"]["pixels_sha256"] == expected.samples["pixels_sha256"]


OF_SOME_RANKS = """
import atexit, sys
from pathlib import Path
import numpy as np, torch.distributed as dist
import fiducial
from fiducial import UserError
from fiducial.evaluation import Evaluator

atexit.register(lambda: Path(f"{sys.argv[2]}/open-{group.rank}").write_text(str(dist.is_initialized())))
images, said = np.load(sys.argv[1])["arr_0"][:8], []
group = fiducial.init("cpu")  # which nobody closes
mine = range(group.rank, 8, 2)
for what in ("indices", "labels"):
    evaluator = Evaluator("digits", group)
    evaluator.update(images[mine], **{what: np.array(mine)} if group.rank == 0 else {})
    try:
        evaluator.compute()
    except UserError as error:
        said.append(str(error))
Path(f"{sys.argv[2]}/said-{group.rank}").write_text("|".join(said))
"""


def test_what_only_some_ranks_give_is_refused_by_all(samples, tmp_path):
    (tmp_path / "script.py").write_text(OF_SOME_RANKS)
    done = run_command(tmp_path / "script.py", samples, tmp_path, ranks=2, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    expected = "|".join(f"{what} are given for some images and not for others, by other ranks" for what in ("indices", "labels"))
    assert [(tmp_path / f"said-{rank}").read_text() for rank in range(2)] == [expected] * 2
    assert [(tmp_path / f"open-{rank}").read_text() for rank in range(2)] == ["False"] * 2  # or the process may abort


def test_a_refused_batch_leaves_nothing_behind(arrays):
    images, labels = arrays
    evaluator = Evaluator("digits")
    with pytest.raises(UserError, match="takes 64 x 64 only"):
        evaluator.update(np.zeros((2, 32, 32, 3), np.uint8))
    evaluator.update(images[:4], labels=labels[:4])
    for more in ({}, {"indices": np.arange(4), "labels": labels[:4]}):
        with pytest.raises(ValueError, match="for some images and not for others"):
            evaluator.update(images[4:8], **more)
    before = evaluator.state_dict()
    state = Evaluator("digits").update(images[4:8], labels=labels[4:8]).state_dict()
    broken = {
        "features": {"features": state["features"] * torch.nan},
        "spatial": {"spatial": torch.zeros(4, 3)},
        "labels": {"labels": state["labels"].float()},
        "thumbnails": {"kept": state["kept"] + 9},
        "pictures": {"thumbnails": state["thumbnails"][:, :3]},
        "size": {"size": state["size"] * 0},
        "labels below 0": {"labels": state["labels"] - 5},
        "some labels": {"labels": state["labels"] * 0 + torch.tensor([0, 1, 2, -1])},
        "nothing": {"features": None},
    }
    for change in broken.values():
        for add in (evaluator.merge, evaluator.load_state_dict):
            with pytest.raises(ValueError, match="state"):
                add(state | change)
    after = evaluator.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "extractor")


def test_merged_images_without_indices_follow_each_other(arrays, samples):
    images, labels = arrays
    first, second = (Evaluator("digits").update(images[part], labels=labels[part]) for part in (slice(40), slice(40, 60)))
    merged = first.merge(second).update(images[60:], labels=labels[60:])
    result, expected = merged.compute(), from_npz(samples)
    assert same(numbers(result), numbers(expected))
    assert result.samples["pixels_sha256"] == expected.samples["pixels_sha256"]
    assert gallery_html(result.grid, None) == gallery_html(expected.grid, None)


def test_copies_of_training_images_are_told_online(arrays, samples):
    images, labels = arrays
    evaluator = Evaluator("digits", train=samples)
    result = evaluator.update(images[:60], labels=labels[:60]).compute()
    assert result.metrics["authpct-digits"].value == 0
    assert [pair.sample == pair.training for pair in result.memorisation.pairs] == [True] * 10
    assert report_page(result)


def test_training_images_are_cropped_to_the_samples(arrays, tmp_path):
    images, labels = arrays
    (tmp_path / "train").mkdir()
    for number, image in enumerate(images[:8]):
        Image.fromarray(np.pad(image, ((0, 0), (10, 10), (0, 0)))).save(tmp_path / "train" / f"{number}.png")
    evaluator = Evaluator("digits", train=tmp_path / "train")
    result = evaluator.update(images[:60], labels=labels[:60]).compute()
    assert max(pair.ratio for pair in result.memorisation.pairs[:8]) < 0.01
    evaluation = evaluator.evaluation
    with pytest.raises(UserError, match="images of 64 x 64, but the samples are of 32 x 64"):
        evaluation.check_training(64, 32)


def test_what_a_script_of_ones_own_needs_is_short(tmp_path):
    """Metrics and device without settings, paths as text, numbers by their plain names; settings and the class are exported."""
    arrays = pictures(60, 0)
    np.savez(tmp_path / "train.npz", arr_0=pictures(60, 1))
    code = f"""
from fiducial.evaluation import Evaluator, Settings
import numpy as np
images = np.load({str(tmp_path / "images.npy")!r})
settings = Settings(cache_dir={str(tmp_path / "cache")!r})
train = {str(tmp_path / "train.npz")!r}
evaluator = Evaluator("digits", settings=settings, metrics=["fid", "precision"], device="cpu", train=train)
result = evaluator.update(images).compute()
print(sorted(result.metrics), result["fid"] is result["fid-digits"], result["authpct"].label, result["precision"].n)
try:
    result["kid"]
except KeyError as error:
    print(error)
"""
    np.save(tmp_path / "images.npy", arrays)
    done = run_command("-c", code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "['authpct-digits', 'fid-digits', 'precision-digits'] True AuthPct-digits 60"
    assert second == "'kid was not computed, but fid, precision, authpct'"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"settings": {"protocol": "adm"}}, "settings={'protocol': 'adm'}): must be Settings or None"),
        ({"weights": "inception=x"}, "weights='inception=x'): must be Mapping or None"),
        ({"device": "tpu9"}, "device tpu9: no such device; choose from auto, cuda, cpu"),
        ({"extractor": "nope"}, "there is no extractor 'nope'; choose from inception"),
        ({"metrics": "fid,f"}, "--metrics f: no such metric; choose from"),
    ],
)
def test_what_cannot_be_an_evaluator_is_told_in_one_sentence(given, said):
    with pytest.raises(UserError) as refused:
        Evaluator("digits", **{"device": "cpu"} | given)
    assert said in str(refused.value)


def test_metrics_may_be_one_text_and_what_was_left_out_is_told(arrays):
    assert Settings(metrics="fid,precision").metrics == ("fid", "precision")
    evaluator = Evaluator("digits", device="cpu")
    result = evaluator.update(arrays[0][:20]).compute()
    with pytest.raises(KeyError, match="sFID-digits was left out: the extractor digits has no spatial features"):
        result["sfid"]
    with pytest.raises(ValueError, match="integers up to 9,007,199,254,740,992"):
        evaluator.update(arrays[0][:1], indices=np.array([2**62]))
