"""The wheel, installed in a new environment outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("gps", "agents", "hyperparams", "data", "setup.cfg", "pyproject.toml", "README.md")


def run(*argv, cwd, **kwargs):
    """Run a command outside the checkout, without the checkout on its path."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, **kwargs
    )
    assert result.returncode == 0, f"{argv}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that a build folder of the checkout has no say."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PARTS, "LICENSE"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    argv = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    run(sys.executable, *argv, "-w", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment that holds the wheel, and sees all other packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    argv = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q"]
    run(sys.executable, *argv, wheel, cwd=folder)
    paths = sysconfig.get_paths()
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # after the installation, which would take our own editable one for the wheel's; a path that is
    # named in a .pth file is searched last, and .pth files in it are not read
    others = (path for path in sys.path if path.endswith("site-packages"))  # of .pth files here
    lines = dict.fromkeys((paths["purelib"], paths["platlib"], *others))
    (site / "others.pth").write_text("".join(f"{line}\n" for line in lines))
    return folder, python, site


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"gps", "guided_policy_search"}
    assert "gps/py.typed" in names
    for part in ("agents", "hyperparams", "data"):
        assert f"gps/{part}/__init__.py" in names
    want = {
        *(p.relative_to(ROOT).as_posix() for p in (ROOT / "gps").rglob("*.py")),
        *(f"gps/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "agents").glob("*.py")),
        *(f"gps/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "hyperparams").glob("*.py")),
        *(f"gps/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "data").rglob("*.xml")),
    }
    assert want <= set(names)
    assert any(n.endswith("peg_insertion.xml") for n in want)
    assert any(n.endswith("LICENSE") for n in names)


def test_the_installed_package_is_the_wheels(installed):
    folder, python, site = installed
    assert not {"agents", "hyperparams", "data"} & {p.name for p in site.iterdir()}
    code = (
        "import gps, gps.agents, gps.hyperparams, gps.data;"
        "print(*(m.__file__ for m in (gps, gps.agents, gps.hyperparams, gps.data)), sep='\\n')"
    )
    files = run(python, "-c", code, cwd=folder).split()
    assert [Path(f).is_relative_to(site / "gps") for f in files] == [True] * 4, files


@pytest.mark.slow
def test_the_installed_command_runs_experiments(installed):
    folder, python, _ = installed
    gps, work = python.parent / "gps", folder / "work"
    work.mkdir()
    shown = run(gps, "list", cwd=work)
    for path in (ROOT / "hyperparams").glob("[!_]*.py"):
        assert path.stem in shown
    out = run(
        *(gps, "run", "point_mass", "--executor", "serial", "--iterations", "2", "--out", "run"),
        cwd=work,
        timeout=240,
    )
    assert "point_mass: 2 iterations" in out
    assert sorted(p.name for p in (work / "run" / "iterations").iterdir()) == [
        "0000.h5",
        "0001.h5",
        "0002.h5",
    ]
    assert [p.name for p in work.iterdir()] == ["run"]


def test_the_models_come_along(installed):
    folder, python, site = installed
    code = (
        "from gps.agents import arm_reach, peg_insertion\n"
        "for agent in (arm_reach(), peg_insertion()):\n"
        "    agent = agent.build()\n"
        "    print(agent.n_conditions, agent.nu)\n"
    )
    assert run(python, "-c", code, cwd=folder) == "4 2\n4 7\n"
    assert sorted(p.name for p in (site / "gps" / "data" / "models").iterdir()) == sorted(
        p.name for p in (ROOT / "data" / "models").iterdir() if p.suffix == ".xml"
    )
