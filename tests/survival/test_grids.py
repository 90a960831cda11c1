"""Grids as text: whatever stands in a file, the command reads it right or says what is wrong, and exits."""

import pytest

from langevin.sweep import main
from langevin.sweeps import SIMULATIONS, Grid
from tests.survival import damage
from tests.survival.outcomes import no_hang

FINETUNE = """
kind = "finetune"
out = "there.zarr"
[fixed]
steps = 6
widths = [8]
epochs = 1
clip = 1.0
[sweep]
method = ["lp", "fft"]
epsilon = { from = 0.1, to = 10, count = 3, spacing = "log" }
seed = { count = 2 }
[record]
variables = ["test_accuracy"]
"""
JUNK = [
    "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "inf", "-nan", "-1", "0", "1e308", "-1e308", "5e-324",
    "99999999999999999999999", "0x10", "true", '""', '"none"', '"\\u0000"', '"../../etc"', "[]", "[[]]",
    "[[], []]", "[1, 'a']", "[nan]", "[true]", "[1, 1]", "[1979-05-27]", "{}", "{ count = 0 }",
    "{ count = 99999999999 }",
    "{ count = 2, start = -9223372036854775809 }", "{ from = 0, to = 1, count = 1000000000 }",
    '{ from = 0, to = 1, count = 3, spacing = "log" }',
    '{ from = 1, to = inf, count = 3, spacing = "linear" }',
    "{ from = 1979-05-27, to = 2, count = 2 }", "{ count = { count = 2 } }", "[{ count = 2 }]", "'''\n'''",
    "[" * 3000, "[" * 3000 + "]" * 3000, "", "=", "1 1", "1 # comment",
]  # fmt: skip


def ends(folder, text):
    """Exit status."""
    (folder / "grid.toml").write_text(text)
    with no_hang():
        try:
            return main(["grid.toml", "--check", "--quiet"])
        except SystemExit as ended:
            return ended.code


@pytest.mark.parametrize("grid", [damage.GRID, FINETUNE], ids=["simulate", "finetune"])
def test_any_value_in_place_of_any_other(tmp_path, monkeypatch, capsys, grid):
    monkeypatch.chdir(tmp_path)
    lines = grid.strip().splitlines()
    assert ends(tmp_path, grid) == 0
    capsys.readouterr()
    refused = 0
    for place, line in enumerate(lines):
        name, sign, _ = line.partition(" = ")
        for junk in JUNK if sign else ["[[fixed]]", "[fixed.fixed]", "[sweep]", "", "[", "[a"]:
            changed = [*lines[:place], f"{name} = {junk}" if sign else junk, *lines[place + 1 :]]
            status = ends(tmp_path, "\n".join(changed))
            said = capsys.readouterr().err
            assert status in (0, 2), (line, junk, said)
            assert "Traceback" not in said
            assert (status == 2) == bool(said), (line, junk)
            # it says more than that it is wrong
            assert status == 0 or len(said.split("error:")[1].split()) > 4, (line, junk, said)
            refused += status == 2
    # negative control: most of it is junk
    assert refused > len(JUNK) * 4
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]


def test_keys_that_come_twice_or_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in damage.GRID.strip().splitlines():
        for more in (f"{line}\n{line}", f"a.{line}", f'"{line}"', f"{line}\nb = 1"):
            assert ends(tmp_path, damage.GRID.replace(line, more)) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_the_grid_that_is_damaged_is_a_grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(damage.GRID)
    assert Grid.read(path, {"simulate": lambda: SIMULATIONS})[0].shape == (3, 2, 2)
