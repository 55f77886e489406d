"""The core works with numpy, scipy, numba and threadpoolctl alone; what needs more says so."""

import configparser
import importlib.metadata
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from test_package import run, wheel  # noqa: F401

from gps.extras import EXTRAS, MissingPackageError, needed_by, require

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CORE = ("numpy", "scipy", "numba", "threadpoolctl")
ALL_EXTRAS = [name for names in EXTRAS.values() for name in names]
REFUSED = f"import sys; sys.modules.update(dict.fromkeys({ALL_EXTRAS!r}))\n"
"""A module that stands as None cannot be imported, as if it were not installed."""


def without_extras(code: str, cwd: Path, *argv: str, refused: str = REFUSED):
    return subprocess.run(
        [sys.executable, "-c", refused + code, *argv],
        **{"cwd": cwd, "capture_output": True, "text": True, "timeout": 120, "check": False},
    )


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def top_level(distribution: importlib.metadata.Distribution) -> set[str]:
    """Files and folders of a distribution in site-packages."""
    return {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}


def with_requirements(names: tuple[str, ...]) -> list[importlib.metadata.Distribution]:
    found, todo = {}, list(names)
    while todo:
        name = normal(todo.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on other systems only
        needs = (r for r in found[name].requires or () if "extra ==" not in r)
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs]
    return list(found.values())


def test_the_extras_are_those_of_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    home = importlib.metadata.packages_distributions()
    for extra, names in EXTRAS.items():
        lines = config["options.extras_require"][extra].split("\n")
        wanted = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines if line}
        assert {normal(d) for n in names for d in home.get(n, [n])} == wanted - {
            "guided-policy-search"
        }
        assert extra == "run" or "guided-policy-search[run]" in lines
    lines = config["options"]["install_requires"].split("\n")
    assert {re.match(r"[\w.-]+", line)[0] for line in lines if line} == set(CORE)


def test_the_core_imports_and_computes_without_extras(tmp_path):
    """Also a point mass; and the LQR step of the examples, to the same text."""
    code = """
import importlib, pkgutil, runpy
for name in ("distributions", "dynamics", "costs", "control"):
    package = importlib.import_module(f"gps.{name}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"gps.{name}.{module.name}")
import gps.types, gps.fields, gps.protocols, gps.linalg, gps.threads, gps.execution
from gps.agents import PointMassConfig, Simulation
print(PointMassConfig().build().nu)
runpy.run_path(sys.argv[1])
"""
    example = str(ROOT / "examples" / "lqr_with_kl_bound.py")
    done = without_extras(code, tmp_path, example)
    assert done.returncode == 0, done.stderr
    whole = without_extras(code, tmp_path, example, refused="import sys\n")
    assert done.stdout == whole.stdout
    assert "(LQR)" in done.stdout


@pytest.mark.parametrize(
    ("command", "missing"),
    [("gps run point_mass", "torch"), ("gps evaluate x", "mujoco"), ("gps run --help", "h5py")],
)
def test_a_command_without_its_packages_is_one_line(command, missing, tmp_path):
    refused = f"import sys; sys.modules[{missing!r}] = None\n"
    code = "from gps.cli import main; sys.exit(main(sys.argv[1:]))"
    done = without_extras(code, tmp_path, *command.split()[1:], refused=refused)
    assert done.returncode == 2
    assert done.stderr == (
        f"gps: error: {' '.join(command.split()[:2])} needs the extra 'run' ({missing} is not "
        "installed): pip install 'guided-policy-search[run]'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (
            "from gps.control.models import TorchModel as M; M(lambda x, u, t: x, 1, 1)",
            "TorchModel",
        ),
        ("from gps.control.models import MujocoModel as M; M(None)", "MujocoModel"),
        ("import gps.parallel", "gps.parallel"),
        ("import gps; gps.run", "gps.run"),
    ],
)
def test_a_part_without_its_packages_names_the_extra(code, what, tmp_path):
    done = without_extras(code, tmp_path)
    assert done.returncode == 1
    (*_, last) = done.stderr.splitlines()
    assert f"MissingPackageError: {what} needs the extra 'run' (" in last


def test_commands_that_need_no_extra(tmp_path):
    code = "from gps.cli import main; sys.exit(main(['list']) or main(sys.argv[1:]))"
    done = without_extras(code, tmp_path, "new", "mine", "--from", "peg_insertion")
    assert done.returncode == 0, done.stderr
    assert "peg_insertion_local" in done.stdout
    assert (tmp_path / "mine.py").exists()


def test_a_served_agent_without_its_packages_is_one_line(tmp_path):
    code = "import runpy; runpy.run_module('gps.agents', None, '__main__')"
    done = without_extras(code, tmp_path, "pendulum")
    assert done.returncode == 2
    assert done.stderr == (
        "error: gps.agents.pendulum needs the extra 'run' (mujoco is not installed): "
        "pip install 'guided-policy-search[run]'\n"
    )


def test_names_that_need_an_extra_say_which(tmp_path):
    code = """
import gps, gps.agents
for load in (lambda: gps.run, lambda: gps.agents.MujocoConfig, lambda: gps.load("peg_insertion")):
    try:
        load()
    except gps.GPSError as error:
        print(error)
"""
    done = without_extras(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    parts = ("gps.run", "gps.agents.MujocoConfig", "gps.agents.peg_insertion")
    assert len(lines) == 3
    for line, part in zip(lines, parts, strict=True):
        assert re.search(rf"{part} needs the extra 'run' \(\w+ is not installed\): pip", line)


def test_other_missing_packages_are_bugs(monkeypatch):
    with pytest.raises(ModuleNotFoundError) as caught, needed_by("x"):
        raise ModuleNotFoundError("No module named 'other'", name="other")
    assert not isinstance(caught.value, MissingPackageError)
    for name in ("viser", "plotly"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"the page .*\(viser, plotly are not installed"):
        require("gui", "the page")


def test_a_run_without_networks_in_torch_imports_no_torch(tmp_path):
    """It holds 130 MB in every process; the compiled perceptron needs none."""
    code = """
import sys, gps
for name in ("point_mass", "point_mass_policy"):
    for _ in gps.run(gps.load(name), iterations=1, out=name):
        pass
print(sorted({"torch", "dask"} & set(sys.modules)))
"""
    done = without_extras(code, tmp_path, refused="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_torch_is_pinned_when_it_is_imported_later(tmp_path):
    (tmp_path / "torch.py").write_text(
        "threads = 3\n"
        "def get_num_threads(): return threads\n"
        "def set_num_threads(n): global threads; threads = n\n"
    )
    code = """
import sys
from gps.threads import one_thread, pin_torch
before = list(sys.meta_path)
with one_thread(), one_thread():
    import torch
    print(torch.threads)
print(torch.threads, sys.meta_path == before)
with one_thread():
    print(torch.threads)
pin_torch()()
print(torch.threads)
"""
    done = without_extras(code, tmp_path, refused="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n3 True\n1\n3\n"


@pytest.mark.slow
def test_workers_import_no_torch(tmp_path):
    code = """
import sys, gps
from gps.parallel import Dask
if __name__ == "__main__":
    executor = Dask(workers=2)
    for _ in gps.run(gps.load("point_mass"), iterations=1, executor=executor):
        pass
    print(executor.client.run(lambda: "torch" in __import__("sys").modules).values())
    executor.close()
"""
    (tmp_path / "script.py").write_text(code)
    argv = [sys.executable, "script.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dict_values([False, False])\n"


@pytest.mark.slow
def test_the_core_in_an_environment_of_its_own(wheel, tmp_path):  # noqa: F811
    """Its tests pass there, and it takes less than 450 MB."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    argv = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q"]
    run(sys.executable, *argv, wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    tools = tmp_path / "tools"  # for the tests
    tools.mkdir()
    for folder, names in ((site, CORE), (tools, ("pytest", "hypothesis"))):
        for distribution in with_requirements(names):
            for name in top_level(distribution):
                if not (folder / name).exists():
                    (folder / name).symlink_to(distribution.locate_file(name))
    files = [Path(at) / name for at, _, names in os.walk(site, followlinks=True) for name in names]
    assert sum(f.stat().st_size for f in files if f.suffix != ".nbc") < 450e6
    (site / "tools.pth").write_text(f"{tools}\n{TESTS}\n")  # the plugin lies in TESTS
    see = "import gps, sys; print(gps.__file__)\nfor name in sys.argv[1:]: __import__(name)"
    seen = subprocess.run(
        [python, "-c", see, "torch"], cwd=tmp_path, capture_output=True, text=True
    )
    assert seen.stdout.startswith(str(site))
    assert "No module named 'torch'" in seen.stderr
    argv = [python, "-P", "-m", "pytest", *("-p", "without_extras"), *("-p", "no:cacheprovider")]
    argv += ["-rfEs", "-c", ROOT / "setup.cfg"]
    argv += ["--ignore", TESTS / "costs" / "test_torch_cost.py"]
    argv += [TESTS / folder for folder in ("distributions", "dynamics", "costs", "control")]
    shown = {"capture_output": True, "text": True, "check": False, "timeout": 1800}
    done = subprocess.run(argv, cwd=tmp_path, **shown)
    assert done.returncode == 0, done.stdout[-6000:]
    passed, skipped = (int(n) for n in re.findall(r"(\d+) (?:passed|skipped)", done.stdout)[-2:])
    assert passed > 1000
    assert skipped < 0.1 * passed
