"""What commands say: texts that others wrote reach no terminal as commands, and one line stays one line."""

import ast
import json

import pytest
from conftest import ROOT, run_command
from made_runs import make_run

from fiducial import UserError, console, fetch_each, progress_bar, say, user_errors, warn

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b2J\u202e\nerror: forged\r"
HARMLESS = r"\x1b]0;title\x07\x1b[2J\x9b2J\u202e\nerror: forged\r"


def test_what_is_said_is_printable(capsys):
    say(f"folder {ESCAPES}", "Grüße, 数字")
    warn(f"name {ESCAPES}")
    assert capsys.readouterr() == (f"folder {HARMLESS}\nGrüße, 数字\n", f"name {HARMLESS}\n")


def test_failures_and_errors_are_printable(capsys):
    def fail() -> None:
        raise UserError(f"cannot be fetched ({ESCAPES})")

    fetch_each({"VAE": fail})
    with pytest.raises(SystemExit), user_errors():
        fail()
    assert capsys.readouterr().err == f"VAE: cannot be fetched ({HARMLESS})\nerror: cannot be fetched ({HARMLESS})\n"


def test_a_progress_bar_is_named_printably(capsys):
    with progress_bar(1, "weights \x1b[2J"):
        pass
    assert "weights \\x1b[2J" in capsys.readouterr().err


def test_the_launcher_is_told_printably(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error"))
    console.tell_launcher(f"lost {ESCAPES}")
    assert HARMLESS in json.loads((tmp_path / "error").read_text())["message"]["message"]


def test_an_error_that_nobody_hears_is_no_traceback(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr", None)
    warn("unheard")
    assert capfd.readouterr() == ("", "")


def test_nothing_else_prints():
    """So that no text reaches a terminal beside `say`, `warn` and progress bars."""
    folders = ("fiducial", "models", "diffusion", "sampling", "evaluation")
    files = [ROOT / "sample_ddp.py", *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    for path in files:
        if path == ROOT / "fiducial" / "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_print = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            is_stream = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write")
            assert not is_print, f"{path}, line {node.lineno}"
            assert not is_stream, f"{path}, line {node.lineno}"


@pytest.mark.parametrize("file", ["ended.json", "lock"])
def test_status_says_what_others_wrote_printably(file, tmp_path):
    run = make_run(tmp_path)
    text = json.dumps(ESCAPES)
    content = {
        "ended.json": f'{{"kind": "lost", "message": {text}, "rank": 0, "host": "h", "exit_code": 75, "time": "t"}}',
        "lock": f'{{"host": {text}, "scope": "other", "pid": {text}, "started": "1", "token": "x", "count": 0}}',
    }
    (run / "records.bin").write_bytes(b"")
    (run / file).write_text(content[file])
    done = run_command("-m", "sampling", "status", run)
    assert HARMLESS in done.stdout
    assert done.stdout.count("\n") == 1
    assert json.loads(run_command("-m", "sampling", "status", run, "--json").stdout)["reason"].count(ESCAPES)
