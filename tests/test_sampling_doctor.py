"""python -m sampling doctor: what it says of this machine, and every problem, provoked."""

import os
import socket
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_command

from fiducial.models.decoders import autoencoder
from fiducial.sampling.commands import doctor
from fiducial.sampling.commands.doctor import NOTE, OK, PROBLEM, Finding
from fiducial.sampling.store import lock


def only(findings, level: str) -> list[Finding]:
    return [finding for finding in findings if finding.level == level]


def test_it_speaks_of_everything_once_for_two_ranks_and_leaves_nothing(tmp_path):
    cache = tmp_path / "cache"
    where = ("--sample-dir", tmp_path / "new" / "samples", "--cache-dir", cache)
    done = run_command("-m", "sampling", "doctor", "--no-numerics", *where, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "no problem"
    assert [line.split()[1] for line in lines[:-1]] == [
        *("packages", "processor", "compiler", "memory", "checkpoint", "inception", "reference", "vae", "vae"),
        *("cache", "cache", "network", "hub", "folder", "disk", "folder"),
    ]
    assert f"{tmp_path} is seen by ranks other than 0, too" in lines[-2]
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_told_by_the_exit_code(tmp_path):
    (tmp_path / "file").touch()
    environment = {"CXX": str(tmp_path / "absent"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = run_command("-m", "sampling", "doctor", "--no-numerics", "--sample-dir", tmp_path / "file", **environment)
    assert done.returncode == 1
    problems = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith(PROBLEM)]
    assert [about for about, _ in problems] == ["compiler", "folder"]
    assert f"does not work with {tmp_path / 'absent'}; install g++, or name one by CXX" in problems[0][1]
    assert f"{tmp_path / 'file'} cannot be written (Not a directory); choose another --sample-dir" in problems[1][1]
    assert done.stdout.splitlines()[-1] == "2 problem(s)"


@pytest.mark.parametrize(
    ("have", "problem"),
    [("2.0", ""), ("2.9.1", ""), ("3.0", "some 3.0"), ("1.9", "some 1.9"), (None, "some is not installed"), ("2.1rc1+x", "")],
)
def test_versions_are_held_against_their_ranges(have, problem, monkeypatch):
    def version(_: str) -> str:
        if have is None:
            raise PackageNotFoundError
        return have

    monkeypatch.setattr(doctor, "version", version)
    found = list(doctor.packages("# what is needed\nsome>=2.0,<3  # for something\n\n"))
    assert [finding.text for finding in only(found, PROBLEM)] == ([problem] if problem else [])
    assert all(finding.remedy == "pip install 'some<3,>=2.0'" for finding in only(found, PROBLEM))
    assert len(only(found, OK)) == (not problem)


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 10, 1)))
    assert only(doctor.packages(""), PROBLEM)[0].remedy == "Fiducial needs 3.11 or later"


def test_a_folder_where_files_are_not_replaced_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "write_whole", lambda *_: None)
    with lock.Lock(tmp_path):
        assert "shows an old file" in only(doctor.written(tmp_path, tmp_path), PROBLEM)[0].text


def test_a_folder_without_locks_is_a_problem(tmp_path):
    assert "two runs could hold one folder" in only(doctor.written(tmp_path, tmp_path), PROBLEM)[0].text
    with lock.Lock(tmp_path):
        assert only(doctor.written(tmp_path, tmp_path), PROBLEM) == []


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SEEN_SECONDS", 0.1)
    with lock.Lock(tmp_path) as held:
        assert doctor.seen(tmp_path, held.token, 1)[0].level == OK
        assert doctor.seen(tmp_path, "another", 1)[0].level == PROBLEM
    found = doctor.seen(tmp_path / "probe", held.token, 1)[0]
    assert found.level == PROBLEM
    assert f"does not see {tmp_path} of rank 0" in found.text


@pytest.mark.parametrize(
    ("free", "files", "levels"),
    [(100e9, 0, [OK]), (100e9, 10**6, [OK]), (12e9, 10**6, [NOTE]), (9e9, 10**6, [PROBLEM]), (100e9, 49_999, [OK, NOTE])],
)
def test_room_is_held_against_fifty_thousand_images(free, files, levels, tmp_path, monkeypatch):
    system = SimpleNamespace(f_bavail=int(free) // 4096, f_frsize=4096, f_files=files, f_favail=files)
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    assert [finding.level for finding in doctor.room(tmp_path / "to be made")] == levels


def test_weights_are_found_where_a_run_looks_for_them(tmp_path):
    assert {finding.level for finding in doctor.weights(tmp_path)} == {NOTE}
    repository = "models--" + autoencoder.NAMED_VAES["ema"].replace("/", "--")
    files = [
        tmp_path / "checkpoints" / "DiT-XL-2-256x256.pt",
        tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth",
        tmp_path / "references" / "adm-imagenet-256.npz",
        tmp_path / "hub" / repository / "snapshots" / "abc" / autoencoder.WEIGHTS_FILE,
        tmp_path / "hub" / repository / "refs" / "main",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("abc")
    damaged = only(doctor.weights(tmp_path), PROBLEM)
    assert [finding.text for finding in damaged] == [f"{path} is damaged" for path in (files[0], files[2])]
    for path in (files[0], files[2]):
        np.savez(path.open("wb"), mu=np.zeros(2))
    found = list(doctor.weights(tmp_path))
    assert [finding.text for finding in only(found, OK)] == [*map(str, files[:3]), f"--vae ema: {files[3].parent}"]
    assert [finding.text.split(":")[0] for finding in only(found, NOTE)] == ["--vae mse"]


def test_a_host_without_an_address_needs_an_interface(monkeypatch):
    def fail(_: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert only(doctor.surroundings(), PROBLEM) == []
    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert "GLOO_SOCKET_IFNAME" in only(doctor.surroundings(), PROBLEM)[0].remedy
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert only(doctor.surroundings(), PROBLEM) == []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert "it must be one of" in only(doctor.surroundings(), PROBLEM)[0].remedy


def test_hub_and_scheduler_are_mentioned(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "RANK", *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
    assert {finding.about for finding in doctor.surroundings()} == {"network"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert {finding.about for finding in doctor.surroundings()} == {"network"}
    for name, value in {"HF_HUB_OFFLINE": "1", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    found = list(doctor.surroundings())
    assert [finding.level for finding in found if finding.about in ("hub", "slurm")] == [NOTE, OK, NOTE]
    monkeypatch.setenv("RANK", "0")
    assert len(list(doctor.surroundings())) == len(found) - 1


def test_a_gpu_is_described(monkeypatch):
    properties = SimpleNamespace(name="Some GPU", total_memory=80 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    gpu, nccl = doctor.gpus()
    assert "0: Some GPU, 80 GB, capability 9.0" in gpu.text
    assert gpu.text.endswith("--precision auto is bf16")
    assert nccl.text.startswith("2.27.3")
