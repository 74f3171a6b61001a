"""The folder of a run, or the file that says what it is, goes away while it is being drawn: one sentence that says that."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import options

import sample_ddp
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.store import lock

GONE = {
    "renamed": lambda folder, _: folder.rename(folder.with_name("elsewhere")),
    "deleted": lambda folder, _: shutil.rmtree(folder),
    "not described": lambda folder, told: (folder / told).unlink(),
}


def draw(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("told", ["manifest.json", "online.json"])
def test_what_goes_away_while_drawing_is_told(told, how, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    online = ["--ref", "digits", "--evaluate-online"] if told == "online.json" else []
    folder, blocks = tmp_path / ("run-online" if online else "run"), LatentDiffusion.blocks

    def lose(*arguments):
        for number, block in enumerate(blocks(*arguments)):
            if number == 1:
                GONE[how](folder, told)
            yield block

    monkeypatch.setattr(LatentDiffusion, "blocks", lose)
    arguments = [*options(tiny_checkpoint, tmp_path, num_fid_samples=12), *online]
    with pytest.raises(SystemExit) as ended:
        draw(arguments, monkeypatch)
    assert ended.value.code == 2
    what = folder / told if how == "not described" else folder
    said = f"error: {what} was renamed or removed while it was being drawn; put it back, and the same command continues"
    assert capsys.readouterr().err.splitlines()[-1] == said
    if how == "renamed":
        monkeypatch.setattr(LatentDiffusion, "blocks", blocks)
        folder.with_name("elsewhere").rename(folder)
        (folder / lock.LOCK).unlink()  # whose holder, this process, is not dead here
        draw(arguments, monkeypatch)


def test_a_holder_notices_by_itself(tmp_path, monkeypatch):
    """Also where nothing is written for long."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    told: Path = tmp_path / "manifest.json"
    told.write_text("{}")
    with lock.Lock(tmp_path) as held:
        held.told = told
        held.check()
        told.unlink()
        assert held.lost.wait(60)
        with pytest.raises(Exception, match=r"manifest\.json was renamed or removed while it was being drawn"):
            held.check()
