"""Tables of the README and the docs: every row belongs to the table that it stands in."""

import re
from pathlib import Path

import pytest

import gps
from gps.pipeline import loader

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def tables(text):
    """Tables as lists of rows, each a list of cells."""
    table = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            plain = re.sub(r"`[^`]*`|\\\|", lambda m: m[0].replace("|", "/"), line)
            table.append(plain.strip().strip("|").split("|") if plain.count("|") > 1 else [plain])
        elif table:
            yield table
            table = []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_rows_have_as_many_cells_as_their_head(page):
    for head, *rows in tables(page.read_text()):
        assert [row for row in rows if len(row) != len(head)] == []


def test_the_readme_lists_every_experiment_once_with_its_algorithm():
    text = (ROOT / "README.md").read_text()
    table = next(t for t in tables(text) if t[0][0].strip() == "experiment" and len(t[0]) == 3)
    algorithms = {"trajectory optimisation", "iLQR", "MDGPS", "BADMM", "PILQR", "PI2", "PIGPS"}
    algorithms |= {"planning with a global model"}
    for row in table[2:]:
        assert any(row[2].strip().startswith(a) for a in algorithms), row
    listed = [name for row in table[2:] for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(name for name, _ in loader.names())
    assert gps.load(listed[0]).name == listed[0]
