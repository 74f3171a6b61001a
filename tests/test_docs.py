"""Every command of the README and of docs/ is run, in the order of its page, with the digits in the place of large files.

What a command's words are replaced by stands in `INSTEAD`, what is added to it in `MORE`: sizes, and the digits' shape.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, ROOT, run_command
from pickled_networks import write_code, write_network
from safetensors.torch import load_file
from test_custom_classes import write_checkpoint
from test_models_fetch import in_hub_cache

from fiducial.evaluation.features import WEIGHTS
from fiducial.models.checkpoints.catalogue import CATALOGUE
from scripts.stand_ins import pictures, write_pngs

PROGRAMS = ("bash", "export", "python", "sbatch", "source", "torchrun")
ELSEWHERE = ("bash scripts/demo.sh", "bash scripts/test.sh")  # run by test_scripts.py, and by whoever runs this
CLASSES = ("heron", "kingfisher", *(f"wader {number}" for number in range(15)))
SIZES = "--num-fid-samples 8 --num-sampling-steps 2 --per-proc-batch-size 4 --precision fp32 --no-compile --device cpu"
INSTEAD = {
    "--preset dit-xl-2-256": "--preset digits",
    "--ref adm-imagenet-256": "--ref digits",
    "--nproc_per_node=8": "--nproc_per_node=1",
    "models fetch dit-xl-2-256": "models fetch dit-xl-2-256 --cache-dir {folder}/shared",
    ".sbatch RUN": ".sbatch JOB",
    '"1.0 1.25 1.5" "0 1 2"': '"1.25" "0 1"',
    "--nnodes=4": "--nnodes=1",
    "node0:29500": "localhost:{port}",
    "/shared/fiducial": "{folder}/shared",
    "--image-size 256": "--image-size 64",
    "--protocol dino": "--protocol adm",
    "--model SiT-B/2": "--model SiT-XS/2 --images 2 --repeats 1",
    "--model LightningDiT-B/1": "--model LightningDiT-XS/1 --images 2 --repeats 1",
    "--model JiT-B/16": "--model JiT-XS/8 --images 2 --repeats 1",
    "sha256=HASH": "sha256=$(cat HASH)",
    "steps=250,vae=ema,size=32": "steps=2,vae=vae,size=8",
    "fetch dinov2": "fetch dinov2 --cache-dir {folder}/shared",
}
MORE = {
    r"sample_ddp\.py(?!.*--generator )|\.sbatch RUN|submit_sweep": SIZES,
    "--generator ": "--num-fid-samples 8 --per-proc-batch-size 4 --device cpu",
    r"--ckpt (0400000\.pt|DiT-XL)": "--vae vae",
    r"evaluation ref|calc generated": "--extractor digits",
}
# As one node of one job; the real ones are in test_slurm.py.
STUBS = {
    "sbatch": "last=0\nwhile [[ $1 == --* ]]; do [[ $1 == --array=0-* ]] && last=${1#--array=0-}; shift; done\n"
    "export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=localhost\n"
    'for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$@" >&2; done\necho 7',
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": "echo localhost",
}
LONG = dict.fromkeys(
    ("evaluating", "generators", "performance", "protocol", "quickstart", "slurm", "your-model"), pytest.mark.long
)  # the README has of each
NAMED = re.compile(r"# (\w+\.py)\b")  # how a module begins that the page's commands use
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The commands in the indented blocks of a page, each in one line, without comments."""
    blocks = re.findall(r"(?:^    .*\n)+", page.read_text() + "\n", re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.sub(r"\s+# .*", "", re.sub(r"\s+", " ", line)) for line in lines]
    return [
        line for line in found if re.sub(r"^\w+=(\"[^\"]*\"|\S+) ", "", line).split()[0] in PROGRAMS and line not in ELSEWHERE
    ]


def programs(page: Path) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def as_run(command: str, **names: object) -> str:
    """The same with small numbers and the digits' shape."""
    more = [words for pattern, words in MORE.items() if re.search(pattern, command)]
    for words, others in INSTEAD.items():
        command = command.replace(words, others.format(**names))
    return " ".join([command, *more])


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> Path:
    """A folder with every file that the pages name."""
    folder = tmp_path_factory.mktemp("stand-ins")
    shutil.copytree(DIGITS / "vae", folder / "vae")
    for name in ("VIRTUAL_imagenet256_labeled.npz", "REF.npz"):
        shutil.copy(DIGITS / "reference.npz", folder / name)
    torch.save(load_file(DIGITS / "dit.safetensors"), folder / "DiT-XL-2-256x256.pt")
    write_checkpoint(folder / "0400000.pt")
    for number, name in enumerate(CLASSES):
        (folder / "train").mkdir(exist_ok=True)
        write_pngs(folder / "train" / name, pictures(2, number, 64))
    write_pngs(folder / "generated", pictures(4, 2, 64))
    cache = folder / "shared"
    shutil.copytree(DIGITS / "vae", in_hub_cache(cache / "hub", "stabilityai/sd-vae-ft-ema"))
    fetched = (
        CATALOGUE["dit-xl-2-256"].path(cache),
        cache / "references" / "adm-imagenet-256.npz",
        WEIGHTS["inception"].kept_at(cache),
        WEIGHTS["dinov2"].kept_at(cache),
    )
    for path in fetched:  # `fetch` asks no more than that they are there
        path.parent.mkdir(exist_ok=True)
        path.touch()
    code = write_code(folder / "edm2")
    (folder / "HASH").write_text(write_network(folder / "edm2-img64-s.pkl", code, "edm2", img_resolution=64, label_dim=1000))
    (folder / "run.yaml").write_text("preset: digits\ncfg-scale: 1.375\ncfg-channels: 4\n")
    shutil.copytree(folder / "train", folder / "ImageNet" / "train")
    done = run_command(
        "sample_ddp.py", "--preset", "digits", *SIZES.split(), "--sample-dir", folder / "samples", "--run-name", "RUN"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(stand_ins, tmp_path) -> Path:
    """A checkout to run in, with the stand-ins in it, and an environment."""
    place = tmp_path / "checkout"
    shutil.copytree(stand_ins, place)
    for name in ("assets", "diffusion", "examples", "fiducial", "evaluation", "models", "sampling", "scripts", "sample_ddp.py"):
        (place / name).symlink_to(ROOT / name)
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "activate").touch()
    (place / "bin").mkdir()
    for name, text in STUBS.items():
        (place / "bin" / name).write_text(f"#!/usr/bin/env bash\nset -e\n{text}\n")
        (place / "bin" / name).chmod(0o755)
    return place


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=LONG.get(page.stem, ())) for page in PAGES if commands(page)]
)
def test_the_commands_of_a_page_work(page, place):
    path = f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    for text in programs(page):
        if named := NAMED.match(text):
            (place / named[1]).write_text(text)
    for command in commands(page):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = as_run(command, port=port, folder=place)
        done = subprocess.run(
            ["bash", "-c", line], cwd=place, env=os.environ | quiet, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\nrun as\n{line}\n{done.stdout}\n{done.stderr}"


def test_the_python_of_a_page_works(place):
    found = [text for page in PAGES for text in programs(page) if not NAMED.match(text)]
    assert found
    for text in found:
        done = run_command("-c", text, PYTHONPATH=str(place))
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) > 100  # noise is no digit


def test_every_page_is_read():
    """A change of how commands are set apart would leave none to run."""
    assert {page.stem for page in PAGES if commands(page)} >= {"README", "quickstart", "your-model", "protocol", "slurm"}
    assert len(commands(ROOT / "docs" / "quickstart.md")) >= 10
    assert (
        as_run("torchrun --nproc_per_node=8 sample_ddp.py", port=1, folder="")
        == f"torchrun --nproc_per_node=1 sample_ddp.py {SIZES}"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
