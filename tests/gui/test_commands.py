"""`gps gui`, `gps plot` and the options of `gps run` that belong to them, without a browser."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from gps import cli
from gps.pipeline import changes
from gps.pipeline.changes import Change, Changes
from gps.pipeline.store import RunFolder


def error_of(capsys, *argv):
    assert cli.main(list(map(str, argv))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gps: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def hashes(folder):
    files = sorted((folder / "iterations").glob("*.h5"))
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def test_errors_of_wrong_arguments(tmp_path, capsys):
    assert "does not exist" in error_of(capsys, "gui", tmp_path / "none")
    assert "does not exist" in error_of(capsys, "plot", tmp_path / "none", "--out", tmp_path / "f")
    assert "--port must be" in error_of(capsys, "gui", tmp_path, "--port", 70000)


def test_no_address_is_printed_where_a_run_to_compare_with_is_missing(run_path, tmp_path, capsys):
    pytest.importorskip("viser")
    argv = ["gui", str(run_path), "--port", "0", "--compare", str(tmp_path / "none")]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "none does not exist" in err


def test_options_of_the_page_need_the_page(tmp_path, capsys):
    argv = ["run", "point_mass", "--executor", "serial", "--out", tmp_path / "run"]
    assert "--port needs --gui" in error_of(capsys, *argv, "--port", 8080)
    assert not (tmp_path / "run").exists()


def test_the_extra_is_named_where_it_is_missing(run_path, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mjviser", None)
    assert "needs the extra 'gui'" in error_of(capsys, "gui", run_path)
    argv = ["run", "point_mass", "--executor", "serial", "--out", tmp_path / "run", "--gui"]
    assert "needs the extra 'gui'" in error_of(capsys, *argv)


def test_a_weak_token_is_refused(run_path, capsys):
    pytest.importorskip("viser")
    code = subprocess.run(
        [sys.executable, "-m", "gps.cli", "gui", str(run_path), "--port", "0", "--token", "abc"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert code.returncode == 2
    assert "must have 16 to 128 characters" in code.stderr
    assert "Traceback" not in code.stderr


def test_the_page_listens_here_only_and_ends_on_a_signal(run_path):
    pytest.importorskip("viser")
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen(1)
    port = taken.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "gps.cli", "gui", str(run_path), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert f"port {port} is taken; using port" in process.stdout.readline()
        url = re.fullmatch(r"gui: (http://127\.0\.0\.1:(\d+)/)\n", process.stdout.readline())
        with urllib.request.urlopen(url[1], timeout=60) as page:
            assert page.status == 200
        foreign = urllib.request.Request(url[1], headers={"Origin": "http://evil.example"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(foreign, timeout=60)
        assert refused.value.code == 403
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
        taken.close()
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_changes_are_made_again(tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    argv = ["run", "point_mass", "--executor", "serial", "--iterations", "3", "--agent.T", "15"]
    made = Changes().with_change(2, Change({"samples": "3"}, seed=4))
    (tmp_path / "changes.json").write_bytes(changes.encode(made))
    given = ["--changes", str(tmp_path / "changes.json")]
    assert cli.main([*argv, *given, "--out", str(out)]) == 0
    assert [RunFolder.open(out).read(n).rollouts[0].N for n in (1, 2, 3)] == [5, 3, 3]
    assert RunFolder.open(out).changes() == made
    assert cli.main([*argv, "--changes", str(out / "changes.json"), "--out", str(again)]) == 0
    assert hashes(out) == hashes(again)
    before = hashes(out)
    assert cli.main(["resume", str(out), "--from", "1", "--executor", "serial"]) == 0
    assert hashes(out) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("{}", "holds no changes of a run"),
        (
            changes.encode(Changes().with_change(2, Change({"sampels": "3"}))),
            "did you mean samples",
        ),
    ],
)
def test_changes_that_cannot_be_made_are_refused_at_once(tmp_path, capsys, text, message):
    path, out = tmp_path / "changes.json", tmp_path / "run"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    argv = ["run", "point_mass", "--executor", "serial", "--out", out, "--changes", path]
    assert message in error_of(capsys, *argv)
    assert not out.exists()
    if text is None:
        argv = ["run", "point_mass_policy", "--asynchronous", "--out", out, "--changes", path]
        assert "--changes is for synchronous runs" in error_of(capsys, *argv)


def test_plot_writes_figures_and_numbers(run_path, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "figures"
    assert cli.main(["plot", str(run_path), "--out", str(out), "--condition", "1"]) == 0
    words = capsys.readouterr().out
    assert words.startswith("wrote ")
    assert words.endswith("; the inspector's are of iteration 3\n")
    assert list((out / "progress").glob("*.png"))
    assert list((out / "iteration_0003" / "condition_1").glob("*.csv"))
