"""The table of quantities: training, evaluation and the calculator support a new row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.paths import ROOT
from support.train_runs import SMALL

from tensormd.models.quantities import FROM_VOIGT, QUANTITIES, VOIGT, with_derived

HEAD = '''
import torch
from torch import nn

from .base import Head, HeadConstants


class MomentReadout(Head):
    """A moment of each atom, which sum to the charge of their system."""

    def __init__(self, representation):
        super().__init__(representation)
        self.constants = HeadConstants()
        self.mix = nn.Linear(int(representation.channels), 1)

    def forward(self, x, graph):
        raw = self.constants.scale * self.mix(x[0]).squeeze(-1).double()
        ones = torch.ones_like(raw)
        count, total = (
            torch.zeros_like(graph.charge).index_add(0, graph.system, v) for v in (ones, raw)
        )
        return raw + ((graph.charge - total) / count)[graph.system]

    def standardise(self, graphs, labels):
        self.constants.scale.fill_(float(torch.cat(list(labels)).square().mean().sqrt()))
'''
ROW = """    Quantity(
        name="magmoms",
        shape=(),
        per_atom=True,
        unit="mu_B",
        text="magnetic moments",
        reported=Reported(1e3, "mmu_B"),
        weight_unit="1/mu_B",
        units={"mu_b": 1.0},
        head=MomentReadout,
    ),
)
QUANTITIES = {"""


@pytest.fixture
def with_moments(tmp_path: Path) -> Path:
    """A copy of the package in which a head and a row are all that is new."""
    package = tmp_path / "source" / "tensormd"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "package", package, ignore=ignored)
    shutil.copytree(ROOT / "models", package / "models", ignore=ignored)
    for name in ("calculators", "md_runs"):
        (package / name).symlink_to(ROOT / name)
    (package / "models" / "heads" / "moments.py").write_text(HEAD)
    table = package / "models" / "quantities.py"
    text = table.read_text()
    assert text.count(")\nQUANTITIES = {") == 1
    text = text.replace(")\nQUANTITIES = {", ROW)
    start = "from .heads.dipole import"
    text = text.replace(start, f"from .heads.moments import MomentReadout\n{start}")
    table.write_text(text)
    return package.parent


def test_a_head_and_a_row_are_all_that_a_property_needs(
    with_moments: Path, tmp_path: Path
) -> None:
    """Magnetic moments are read, trained for one step, evaluated and in the calculator."""
    frames = [molecule(name) for name in ("H2O", "CH3OH", "H2CO", "CH4") * 2]
    for atoms in frames:
        atoms.rattle(0.02, seed=len(atoms))
        moments = np.where(atoms.numbers == 1, 0.2, -0.3)
        atoms.calc = SinglePointCalculator(atoms, magmoms=moments - moments.mean())
    write(tmp_path / "frames.extxyz", frames)
    content = {
        **SMALL,
        "data": {"train": "frames.extxyz", "split": [4, 4]},
        "model": {**SMALL["model"], "properties": ["magmoms"]},
        "training": {
            "epochs": 1, "batch": 4, "magmoms_weight": 1.0, "energy_weight": 0.0,
            "force_weight": 0.0, "validate_every": 1, "compile": False,
        },
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    ask = (
        "import json, sys\n"
        "from ase.io import read\n"
        "from tensormd import PotentialCalculator\n"
        "from tensormd.md_runs.command.main import main\n"
        "def run(*arguments):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        "run('train', 'c.yaml', '-o', 'out')\n"
        "run('evaluate', 'out/last.safetensors', 'frames.extxyz', '-o', 'errors',\n"
        "    '--data-units', 'magmoms=mu_B', '--json', 'all.json')\n"
        "calculator = PotentialCalculator('out/last.safetensors')\n"
        "pair = read('frames.extxyz', ':2')\n"
        "found = [each['magmoms'].tolist() for each in calculator.evaluate(pair)]\n"
        "pair[1].calc = calculator\n"
        "alone = pair[1].get_magnetic_moments().tolist()\n"
        "with open('calculator.json', 'w') as stream:\n"
        "    json.dump([calculator.implemented_properties, found, alone], stream)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(with_moments)}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "out" / "log.csv").read_text().splitlines()
    assert "magmoms_mae_mmu_b" in log[0]
    assert len(log) == 2
    properties, (first, second), alone = json.loads((tmp_path / "calculator.json").read_text())
    assert properties == ["magmoms"]
    assert (len(first), len(second)) == (3, 6)
    assert sum(second) == pytest.approx(0.0, abs=1e-12)
    assert max(map(abs, second)) > 1e-3
    assert alone == pytest.approx(second)
    errors = json.loads((tmp_path / "all.json").read_text())["errors"]["magmoms"]
    assert (errors["unit"], errors["frames"], errors["compared"]) == ("mmu_B", 8, 36)
    assert errors["mae"] > 0
    worst: Any = read(tmp_path / "errors" / "worst.extxyz", ":")
    difference = worst[0].arrays["predicted_magmoms"] - worst[0].arrays["reference_magmoms"]
    assert 1e3 * np.abs(difference).max() == pytest.approx(errors["largest"], rel=1e-4)


def test_rows_belong_together() -> None:
    for name, row in QUANTITIES.items():
        assert row.name == name
        assert (row.of is None) == (row.derive is None)
        assert row.units or row.per_length is not None
        if row.of is None:
            continue
        source = QUANTITIES[row.of]
        assert (row.units, row.not_periodic) == (source.units, source.not_periodic)
        values = torch.rand(5, dtype=torch.float64)
        if row.inverse is not None:
            torch.testing.assert_close(with_derived({row.of: row.inverse(values)})[name], values)
            assert row.inverse(values).shape[1:] == source.shape


def test_voigt_and_back() -> None:
    tensor = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert tensor[VOIGT].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(tensor[VOIGT][FROM_VOIGT], tensor)
