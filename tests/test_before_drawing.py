"""What used to be noticed when everything was drawn: names too long in bytes, and caches that nothing can be put into."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import options

import sample_ddp
from fiducial import OFFLINE, UserError, check_lengths, make_folder, unwritable
from fiducial.evaluation import Evaluator
from fiducial.evaluation.settings import Settings
from fiducial.models.checkpoints.checkpoint import Checkpoint
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.presets import PRESETS
from fiducial.sampling.source.latent_diffusion import LatentDiffusion


def refusal(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """The last line of a command that is to draw nothing."""
    monkeypatch.setattr(LatentDiffusion, "blocks", lambda *_: pytest.fail("drawing began"))
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        sample_ddp.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("name", "more"), [("数" * 83, []), ("é" * 122, ["--ref", "digits", "--evaluate-online"])])
def test_a_name_that_is_too_long_in_bytes(name, more, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """249 and 244 bytes, which are short enough for the folder, but not for what stands beside it."""
    said = refusal([*options(tiny_checkpoint, tmp_path, run_name=name), *more], monkeypatch, capsys)
    assert "a file's name would have 25" in said
    assert said.endswith("choose a shorter --run-name or --sample-dir")
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_too_long(tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * 21)
    with pytest.raises(UserError, match=r"a path would have 4,\d{3} bytes, and .* takes 4,095; shorten it"):
        check_lengths("shorten it", deep)
    check_lengths("shorten it", tmp_path / ("é" * 127))


@pytest.mark.parametrize("character", ["x", "é", "数", "\U0001f600"])
@pytest.mark.parametrize("both", [True, False])
def test_names_made_of_long_names_fit(character, both):
    long = character * (255 // len(character.encode()))
    config = replace(SamplingConfig(**PRESETS["digits"]), ckpt=Path(f"/models/{long[:-3]}.pt"), vae=long if both else "ema")
    name = config.named_run("0123456789")
    assert len(os.fsencode(f"{name}.npz.part")) <= 255
    assert name.startswith("DiT-XS-2-")
    assert name.endswith("-cfg-1.5-seed-0-01234567")


def test_names_that_fit_are_as_they_were():
    config = replace(SamplingConfig(**PRESETS["digits"]), ckpt=Path("é" * 90 + ".pt"))
    assert config.named_run("0123456789") == f"DiT-XS-2-{'é' * 80}-size-64-vae-digits-cfg-1.5-seed-0-01234567"


def test_a_cache_that_cannot_be_written_is_told_before_drawing(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    for more in ([], ["--evaluate-online"]):
        given = [*options(tiny_checkpoint, tmp_path), "--ref", "digits", "--cache-dir", str(cache), *more]
        said = refusal(given, monkeypatch, capsys)
        assert said == f"error: --cache-dir {cache} cannot be written (Not a directory), where features are put; choose another"
    with pytest.raises(UserError, match="cannot be written"):
        Evaluator("digits", settings=Settings(cache_dir=cache))


def test_whether_a_folder_can_be_written_is_tried(tmp_path):
    assert unwritable(tmp_path / "new" / "folder", 100) == ""
    assert not list(tmp_path.iterdir())
    assert unwritable(Path("/proc/self"), 100)


def test_folders_are_made_however_deep_they_are(tmp_path, monkeypatch):
    """Python's own way calls itself for each, a thousand times at most."""
    monkeypatch.chdir(tmp_path)
    make_folder(deep := Path(*["d"] * 1100))
    assert deep.is_dir()
    make_folder(deep)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    for path in (deep, *list(deep.parents)[:-1]):  # pytest's own removal calls itself as well
        path.rmdir()


@pytest.mark.parametrize("ending", [(), ("--ref", "digits", "--evaluate-online"), ("--dry-run",)], ids=["files", "online", "dry"])
def test_what_was_tried_is_what_draws(ending, tiny_checkpoint, tmp_path, monkeypatch):
    """Rank 0 finds out whether it can draw by loading its networks, and draws with those; then nobody holds the file."""
    loaded = []

    def counted(kind: type, name: str) -> None:
        load = kind.load

        def spied(*given: object, **options: object) -> object:
            loaded.append(name)
            return load(*given, **options)

        monkeypatch.setattr(kind, "load", spied)

    counted(Checkpoint, "network")
    counted(Autoencoder, "decoder")
    given = options(tiny_checkpoint, tmp_path, num_fid_samples=4, num_sampling_steps=2)
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *map(str, given), *ending])
    before = [os.environ.get(name) for name in (OFFLINE, "HF_HUB_OFFLINE")]
    sample_ddp.main()
    assert [os.environ.get(name) for name in (OFFLINE, "HF_HUB_OFFLINE")] == before  # a dry run's are of that run alone
    assert loaded == ["network", "decoder"]
    assert str(tiny_checkpoint) not in Path("/proc/self/maps").read_text()
