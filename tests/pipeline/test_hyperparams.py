"""Every experiment that comes with the toolkit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import gps
from gps import cli
from gps.extras import MissingPackageError
from gps.pipeline import loader
from gps.pipeline.config_io import to_json
from gps.pipeline.experiment import initial_controller

FOLDER = Path(__file__).parent.parent.parent / "hyperparams"
FILES = sorted(p for p in FOLDER.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_experiment_loads_and_builds_its_agent(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = gps.load(path.stem)
    assert experiment.name == path.stem
    try:
        agent = experiment.validate()
    except MissingPackageError as missing:  # of another package's task
        pytest.skip(str(missing))
    assert agent.n_conditions >= 1
    first, _ = initial_controller(experiment.initial, agent, 0)
    assert (first.T, first.nx, first.nu) == (agent.T, agent.layout.size, agent.nu)
    by_path = gps.load(path)
    assert (by_path.agent, by_path.samples) == (experiment.agent, experiment.samples)
    assert by_path.validate().T == agent.T
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_experiment_has_a_line_of_description(path):
    text = gps.load(path.stem).description
    assert 10 <= len(text) <= 90
    assert "\n" not in text
    assert text == text.strip()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_copy_to_edit_is_the_same_experiment(path, tmp_path, monkeypatch):
    """Those that are differences to another one too, in a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    copy = gps.load(loader.new("mine", path.stem))
    assert copy.name == "mine"
    assert to_json(replace(copy, name=path.stem)) == to_json(gps.load(path.stem))


def test_importing_an_experiment_touches_nothing(tmp_path):
    """In a process of its own, whose folder stays empty."""
    code = "".join(f"import gps.hyperparams.{p.stem}\n" for p in FILES)
    out = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert os.listdir(tmp_path) == []


def test_the_list_names_every_file(capsys):
    assert cli.main(["list"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert sorted(shown) == [p.stem for p in FILES]
