"""`python -m evaluation` as it is used."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import DIGITS, ROOT, run_command
from PIL import Image

import fiducial
from fiducial.evaluation import __main__ as cli


def npy_header(shape: tuple[int, ...]) -> bytes:
    """A float64 array's header, without data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


LABELS = np.arange(40) % 10


def scans() -> np.ndarray:
    """Forty pictures of the digits' size; what is on them does not matter here."""
    random = np.random.default_rng(0)
    return np.repeat(random.integers(0, 256, (40, 64, 64, 1), dtype=np.uint8), 3, axis=3)


@pytest.fixture
def samples(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=scans(), arr_1=LABELS)
    return tmp_path / "samples.npz"


def evaluate(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs the command in this process: exit code, standard output, standard error without progress bars."""
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    try:
        with fiducial.user_errors():
            cli.run(cli.build_parser().parse_args())
        code = 0
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


def test_calc_says_what_the_number_is(samples, tmp_path):
    files = {"--json": tmp_path / "r.json", "--html": tmp_path / "r.html"}
    done = run_command("-m", "evaluation", "calc", samples, "--ref", "digits", *[text for pair in files.items() for text in pair])
    assert done.returncode == 0, done.stderr
    assert re.search(r"FID-digits\s+\d+\.\d{4}\s+40", done.stdout)
    result = json.loads((tmp_path / "r.json").read_text())
    names = ("fid", "is", "is-shuffled", "precision", "recall", "density", "coverage")
    assert set(result["metrics"]) == {f"{name}-digits" for name in names}  # never plain FID
    fid = result["metrics"]["fid-digits"]
    assert fid["label"] == "FID-digits"
    assert fid["n"] == 40
    assert fid["value"] > 0
    assert fid["reference_n"] == 1618
    assert "digit" in fid["definition"]
    for part, key in (("samples", "pixels_sha256"), ("reference", "sha256"), ("extractor", "weights_sha256")):
        assert re.fullmatch(r"[0-9a-f]{64}", result[part][key])
    page = (tmp_path / "r.html").read_text()
    assert "FID-digits" in page
    assert page.count("data:image/png;base64,") == 30  # a row a class, samples beside real images
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)


def test_an_npz_and_its_pngs_give_one_result(samples, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pngs"
    folder.mkdir()
    for index, pixels in enumerate(scans()):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
    results = []
    for source in (samples, folder):
        code, _, err = evaluate(monkeypatch, capsys, "calc", source, "--ref", "digits", "--json", tmp_path / "r.json")
        assert code == 0, err
        results.append(json.loads((tmp_path / "r.json").read_text()))
    assert results[0]["samples"]["pixels_sha256"] == results[1]["samples"]["pixels_sha256"]
    for name, metric in results[0]["metrics"].items():
        assert metric["value"] == results[1]["metrics"][name]["value"]


def test_a_reference_is_the_images_it_was_made_of(samples, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ref.npz"
    code, _, err = evaluate(monkeypatch, capsys, "ref", samples, "--out", out, "--extractor", "digits")
    assert code == 0, err
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["mu"].shape == (64,)
        assert json.loads(str(arrays["provenance"]))["count"] == 40
    for reference in (out, samples):  # statistics, or images to make them of
        arguments = [
            "calc",
            samples,
            "--ref",
            reference,
            "--extractor",
            "digits",
            "--metrics",
            "fid",
            "--json",
            tmp_path / "r.json",
        ]
        code, _, err = evaluate(monkeypatch, capsys, *arguments)
        assert code == 0, err
        assert json.loads((tmp_path / "r.json").read_text())["metrics"]["fid-digits"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_published_reference_is_fetched_by_its_name(mirror, samples, tmp_path, monkeypatch, capsys):
    with np.load(DIGITS / "reference.npz") as arrays:
        np.savez(tmp_path / "adm.npz", mu=arrays["mu"], sigma=arrays["sigma"], arr_0=scans())
    path = "/diffusion/jul-2021/ref_batches/imagenet/64/VIRTUAL_imagenet64_labeled.npz"
    mirror.content[path] = (tmp_path / "adm.npz").read_bytes()
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    given = "--extractor", "digits", "--metrics", "fid", "--cache-dir", tmp_path / "cache", "--json", tmp_path / "r.json"
    for _ in range(2):
        code, _, err = evaluate(monkeypatch, capsys, "calc", samples, "--ref", "adm-imagenet-64", *given)
        assert code == 0, err
    assert [asked for asked, _ in mirror.seen] == [path]
    assert (tmp_path / "cache" / "references" / "adm-imagenet-64.npz").is_file()
    recorded = json.loads((tmp_path / "r.json").read_text())["reference"]
    assert recorded["url"] == f"https://openaipublic.blob.core.windows.net{path}"
    assert recorded["kind"] == "ADM's statistics and images"
    code, _, err = evaluate(monkeypatch, capsys, "calc", samples, "--ref", "adm-imagenet-128", *given)
    assert code == 2
    assert "--ref adm-imagenet-128: is of 128 pixels, and the samples are of 64; choose from adm-imagenet-64" in err
    code, _, err = evaluate(monkeypatch, capsys, "calc", samples, "--ref", samples, *given)
    assert json.loads((tmp_path / "r.json").read_text())["reference"]["url"] is None
    assert len(mirror.seen) == 1


def test_fetch_refuses_unknown_names_before_it_fetches(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    code, _, err = evaluate(monkeypatch, capsys, "fetch", "adm-imagenet-64", "imagenet", "--cache-dir", tmp_path)
    assert code == 2
    assert "fetch imagenet: no such reference; choose from adm-imagenet-64" in err
    assert mirror.seen == []


def test_a_file_sorted_by_class_is_warned_about(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "sorted.npz", arr_0=scans(), arr_1=np.sort(LABELS))
    _, out, _ = evaluate(monkeypatch, capsys, "calc", tmp_path / "sorted.npz", "--extractor", "digits", "--metrics", "is")
    assert "sorted by class; up to 5,000 images are one block" in out


def test_names_and_outputs_that_cannot_be_printed_lose_nothing(samples, tmp_path):
    odd = os.fsencode(tmp_path) + b"/sur\xff\nname.npz"
    os.rename(samples, odd)
    files = [tmp_path / "r.json", tmp_path / "r.html"]
    command = [
        "-m",
        "evaluation",
        "calc",
        os.fsdecode(odd),
        "--ref",
        "digits",
        "--metrics",
        "fid,is,kid",
        "--kid-subset-size",
        "9",
    ]
    done = run_command(*command, "--json", files[0], "--html", files[1], PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "sur" in json.loads(files[0].read_text())["samples"]["path"]
    for file in files:
        file.unlink()
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, *command, "--json", files[0], "--html", files[1]]
        done = subprocess.run(arguments, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: standard output cannot be written")
    assert all(file.exists() for file in files)
    missing = run_command("-m", "evaluation", "calc", "a\nerror: b", "--ref", "digits")
    assert missing.stderr == "error: a\\nerror: b: no such file or folder\n"


def test_json_on_standard_output_is_alone_there(samples, tmp_path, monkeypatch, capsys):
    """On two ranks, too; the table goes to standard error. In this process nothing stays redirected."""
    given = "-m", "evaluation", "calc", samples, "--ref", "digits", "--metrics", "fid,is", "--json", "-"
    done = run_command(*given, "--html", tmp_path / "r.html", ranks=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["metrics"]) == {"fid-digits", "is-digits", "is-shuffled-digits"}
    assert "FID-digits" in done.stderr
    words = found["fiducial"]["command"].split()
    assert words[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert words[-len(given) - 2 :] == [*map(str, given), "--html", str(tmp_path / "r.html")]
    assert found["fiducial"]["command"] in (tmp_path / "r.html").read_text()
    code, out, err = evaluate(monkeypatch, capsys, "compare", samples, samples, "--json", "-")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    code, out, err = evaluate(monkeypatch, capsys, *given[2:])
    assert (code, json.loads(out)["metrics"]) == (0, found["metrics"])
    assert "FID-digits" in err
    code, out, _ = evaluate(monkeypatch, capsys, *given[2:-2])
    assert code == 0
    assert out.startswith("metric")


def test_with_standard_output_closed_json_there_is_one_sentence(samples):
    command = f"'{sys.executable}' -m evaluation calc '{samples}' --ref digits --json - >&-"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: standard output is closed, and the result is to go there\n")


def test_a_dry_run_checks_what_needs_no_samples(samples, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = "--ref", "digits", "--cache-dir", tmp_path / "cache", "--dry-run"
    for path in (samples, tmp_path / "absent.npz"):
        code, out, err = evaluate(monkeypatch, capsys, "calc", path, *given)
        assert (code, err) == (0, "")
        assert out.startswith(f"{path} can be evaluated: fid, is, precision, recall, ")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_reference_says_which_extractor_even_if_only_is_is_wanted(samples, monkeypatch, capsys):
    code, out, _ = evaluate(monkeypatch, capsys, "calc", samples, "--ref", "digits", "--metrics", "is")
    assert code == 0
    assert "IS-digits" in out


@pytest.fixture
def files(samples, tmp_path):
    with np.load(DIGITS / "reference.npz") as arrays:
        own = dict(arrays)
    np.savez(tmp_path / "nan.npz", **own | {"mu": own["mu"] * np.nan})
    np.savez(tmp_path / "shape.npz", **own | {"mu": own["mu"][:5]})
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    np.savez(tmp_path / "objects.npz", mu=np.array([None, 1]), sigma=np.eye(2))
    np.savez(tmp_path / "small.npz", arr_0=np.full((4, 8, 8, 3), 99, dtype=np.uint8))
    np.savez(tmp_path / "one.npz", arr_0=scans()[:1])
    np.savez(tmp_path / "alike.npz", arr_0=scans()[:1].repeat(40, 0))
    np.savez(tmp_path / "three.npz", arr_0=scans()[:3])
    np.savez(tmp_path / "gray.npz", arr_0=scans()[..., 0])
    np.savez(tmp_path / "first.npz", arr_0=scans().transpose(0, 3, 1, 2))
    np.savez(tmp_path / "statistics.npz", mu=own["mu"], sigma=own["sigma"], provenance=own["provenance"])
    np.savez(tmp_path / "asymmetric.npz", **own | {"sigma": np.triu(own["sigma"])})
    np.savez(tmp_path / "vast.npz", mu=own["mu"] + 1e200, sigma=own["sigma"])
    np.savez(tmp_path / "indefinite.npz", mu=own["mu"], sigma=2 * np.eye(64) - np.ones((64, 64)))
    np.savez(tmp_path / "wide.npz", arr_0=np.full((4, 64, 96, 3), 99, dtype=np.uint8))
    np.savez(tmp_path / "features.npz", **own | {"features": own["features"].astype(np.float64)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mu.npy", npy_header((10**9,)))
        archive.writestr("sigma.npy", npy_header((10**9, 10**9)))
    with zipfile.ZipFile(tmp_path / "nothing.zip", "w") as archive:
        archive.writestr("readme.txt", "no images")
    np.savez(tmp_path / "labels-only.npz", arr_1=LABELS)
    (tmp_path / "cut.npz").write_bytes(samples.read_bytes()[:3000])
    provenance = json.loads(str(own["provenance"]))
    np.savez(tmp_path / "weights.npz", **own | {"provenance": np.array(json.dumps(provenance | {"weights_sha256": "0" * 64}))})
    np.savez(tmp_path / "size.npz", **own | {"provenance": np.array(json.dumps(provenance | {"image_size": 128}))})
    np.savez(tmp_path / "kinds.npz", **own | {"provenance": np.array(json.dumps(provenance | {"count": "many"}))})
    np.savez(tmp_path / "vgg.npz", **own | {"provenance": np.array(json.dumps(provenance | {"extractor": "vgg"}))})
    for name, width in (("sizes/0.png", 64), ("sizes/1.png", 65), ("grey/0.png", 64)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L" if name.startswith("grey") else "RGB", (width, 64)).save(tmp_path / name)
    (tmp_path / "run.npz.part").write_bytes(bytes(100_000))
    np.savez(tmp_path / "fortran.npz", arr_0=np.asfortranarray(scans()))
    np.savez(tmp_path / "complex.npz", mu=own["mu"] + 1j, sigma=own["sigma"])
    (tmp_path / "empty").mkdir()
    return tmp_path


MISTAKES = [
    ("calc absent.npz --ref digits", "absent.npz: no such file or folder"),
    ("calc {}/empty --ref digits", "holds no images (PNG, JPEG, WebP, TIFF, BMP or PPM), and no dataset"),
    ("calc {}/cut.npz --ref digits", "cannot be read as an npz or zip"),
    ("calc {}/labels-only.npz --ref digits", "found arr_1.npy; numpy.savez('OUT.npz', images) calls them arr_0"),
    ("calc {}/small.npz --ref digits", "images of 8 x 8, but the extractor digits takes 64 x 64 only"),
    ("calc {}/one.npz --ref digits", "FID needs at least 2 images, and there are 1"),
    ("calc {}/samples.npz", "--ref is missing"),
    ("calc {}/samples.npz --ref absent", "--ref absent: no such file or folder"),
    ("calc {}/samples.npz --ref {}/nan.npz", "NaN or infinity"),
    ("calc {}/samples.npz --ref {}/shape.npz", "mu (D,) and sigma (D, D) expected"),
    ("calc {}/samples.npz --ref {}/huge.npz", "larger than anything that belongs there"),
    ("calc {}/samples.npz --ref {}/objects.npz", "is a damaged reference"),
    ("calc {}/samples.npz --ref {}/adm.npz --extractor digits", "has 2048 features, but digits gives 64"),
    ("calc {}/samples.npz --ref {}/adm.npz --inception-weights {}/none.pth", "none.pth: no such file"),
    ("calc {}/samples.npz --ref {}/weights.npz", "made with other weights of digits"),
    ("calc {}/samples.npz --ref digits --extractor inception", "was made with digits"),
    ("calc {}/samples.npz --ref digits --metrics fid,vid", "--metrics vid: no such metric"),
    ("calc {}/samples.npz --ref digits --metrics cmmd", "--metrics cmmd: CMMD depends on CLIP's weights"),
    ("calc {}/samples.npz --ref digits --metrics fid-infinity", "needs at least 640 images, and there are 40"),
    ("calc {}/samples.npz --ref digits --train {}/one.npz", "--train {}/one.npz: holds 1 image, and at least 2 are needed"),
    ("calc {}/samples.npz --ref digits --train {}/small.npz", "takes 64 x 64 only"),
    ("calc {}/samples.npz --ref digits --train {}/alike.npz", "alike.npz: its 40 images are all the same"),
    ("calc {}/samples.npz --ref digits --train absent", "absent: no such file or folder"),
    (f"calc {'x' * 300} --ref digits", "File name too long"),
    (f"calc {{}}/samples.npz --ref {'x' * 300}", "File name too long"),
    ("calc {}/samples.npz --ref digits --metrics sfid", "no spatial features"),
    ("calc {}/samples.npz --ref digits --metrics kid", "KID needs at least 1,000 images on either side, and there are 40"),
    ("calc {}/samples.npz --ref {}/statistics.npz --metrics precision", "neither images nor features"),
    ("calc {}/three.npz --ref digits --metrics recall", "needs at least 4 images on either side, and there are 3"),
    ("calc {}/samples.npz --ref digits --kid-subset-size 1", "--kid-subset-size 1"),
    ("calc {}/samples.npz --ref digits --dtype bfloat16", "digits runs in float32 only"),
    ("calc {}/samples.npz --ref digits --protocol torch-fidelity --fp16-compat", "--fp16-compat"),
    ("calc {}/three.npz --protocol torch-fidelity --extractor digits --metrics is", "IS needs at least 10 images"),
    ("calc {}/samples.npz --ref {}/size.npz --extractor digits", "64 x 64, but the reference {}/size.npz is of 128 x 128"),
    ("calc {}/samples.npz --ref {}/kinds.npz", "its provenance has count = 'many'"),
    ("calc {}/samples.npz --ref {}/asymmetric.npz", "not symmetric"),
    ("calc {}/samples.npz --ref {}/features.npz", "its features are float64"),
    ("calc {}/gray.npz --ref digits", "(N, H, W, 3); found uint8 (40, 64, 64); save numpy.stack([images] * 3, axis=3) of grey"),
    ("calc {}/first.npz --ref digits", "found uint8 (40, 3, 64, 64); save images.transpose(0, 2, 3, 1)"),
    (
        "calc {}/nothing.zip --ref digits",
        "expected an array arr_0, or files (PNG, JPEG, WebP, TIFF, BMP or PPM); found readme.txt",
    ),
    ("calc {}/samples.npz --ref digits --batch-size 0", "--batch-size 0"),
    ("calc {}/samples.npz --ref digits --json {}/no/such/r.json", "there is no folder"),
    ("calc {}/samples.npz --ref {}/complex.npz", "not real numbers"),
    ("calc {}/samples.npz --ref {}/vgg.npz", "there is no extractor 'vgg'"),
    ("calc {}/samples.npz --ref absent --metrics is", "--ref absent"),
    ("calc {}/samples.npz --ref digits --html {}/empty", "it is a folder"),
    ("calc {}/samples.npz --ref digits --metrics ", "--metrics"),
    ("calc {}/samples.npz --ref digits --resize", "--resize"),
    ("ref {}/one.npz --out {}/x.npz --extractor digits", "at least 2"),
    ("ref {}/empty --out {}/x.npz --extractor digits", "holds no images"),
    ("ref {}/samples.npz", "--out"),
    ("ref {}/statistics.npz --out {}/x.npz --extractor digits", "is a reference already"),
    ("calc {}/samples.npz --ref digits --json {}/samples.npz", "samples.npz is named twice"),
    ("calc {}/samples.npz --ref digits --json {}/x --html {}/x", "x is named twice"),
    ("calc {}/samples.npz --ref digits --json /dev/null", "is no ordinary file"),
    ("calc {}/absent --ref absent --html {}/x.pdf", "--html {}/x.pdf: what is written there is .html, not .pdf; name it so"),
    ("calc {}/absent --ref absent --json {}/x.html", "--json {}/x.html: what is written there is .json, not .html"),
    ("calc {}/absent --ref absent --html -", "--html -: is written to a file"),
    ("ref {}/absent --out {}/x.zip", "--out {}/x.zip: what is written there is .npz, not .zip"),
    ("ref {}/absent --out -", "--out -: is written to a file"),
    ("calc {}/absent --ref digits --metrics sfid --dry-run", "no spatial features"),
    ("calc {}/absent --ref {}/none.npz --dry-run", "none.npz: no such file or folder"),
    ("calc {}/samples.npz --ref {}/size.npz --extractor digits --dry-run", "but the reference {}/size.npz is of 128 x 128"),
    ("calc {}/samples.npz --ref {}/vast.npz", "larger than those of any features"),
    ("calc {}/samples.npz --ref {}/indefinite.npz", "negative eigenvalues"),
    ("calc {}/samples.npz --ref {}/cut.npz --metrics is", "cannot be read as an npz or zip"),
    ("calc {}/wide.npz --ref {}/size.npz --extractor digits", "takes 64 x 64 only"),
    ("ref {}/samples.npz --out {}/x.npz --extractor digits --image-size 32", "crops files of images, not an npz"),
    ("ref {}/samples.npz --out {}/x.npz --extractor digits --image-size 4", "--image-size 4"),
    ("ref {}/samples.npz --out {}/x.npz --extractor digits --image-size 100000", "must be 8 to 4,096"),
    ("ref {}/samples.npz --out {}/x.npz --extractor digits --features -1", "--features -1"),
    ("calc {}/samples.npz --ref {}/sizes --inception-weights {}/none.pth", "1.png is 65 x 64, but '0.png' is 64 x 64"),
    ("calc {}/sizes --ref digits --inception-weights {}/none.pth", "1.png is 65 x 64, but '0.png' is 64 x 64"),
    ("calc {}/samples.npz --ref digits --train {}/fortran.npz", "is in Fortran order; save numpy.ascontiguousarray of it"),
    (
        "ref {}/sizes --out {}/x.npz --extractor digits",
        "python -m evaluation calc and ref make images of any size and colour fit",
    ),
    (
        "ref {}/grey --out {}/x.npz --extractor digits",
        "its mode is L); python -m evaluation calc and ref make images of any size",
    ),
    ("calc {}/samples.npz --ref digits --image-size 4", "--image-size 4: must be 8 to 4,096"),
    ("calc {}/samples.npz --ref digits --image-size 32", "crops files of images, not an npz"),
    ("calc {}/run.npz --ref digits", "run.npz: no such file or folder; run.npz.part is of a run that is not finished"),
    ("calc {}/run.npz.part --ref digits", "run.npz.part is of a run that is not finished"),
]


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_a_mistake_gets_one_sentence_and_writes_nothing(command, said, files, monkeypatch, capsys):
    before = sorted(files.rglob("*"))
    code, out, err = evaluate(monkeypatch, capsys, *command.replace("{}", str(files)).split(" "))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert said.replace("{}", str(files)) in err
    assert sorted(files.rglob("*")) == before
