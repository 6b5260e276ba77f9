"""Plans of campaigns: keys, errors with their lines, runs, structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from support.paths import ROOT

from tensormd.md_runs.campaign.plan import SECTIONS, Plan, StructuresSection, tasks_of
from tensormd.md_runs.campaign.structures import embed, folder_names, read_given
from tensormd.md_runs.runs.schema import parse_config
from tensormd.md_runs.train.config import keys_of, table_of

GUIDE = ROOT / "docs" / "guide" / "campaigns.md"
LEAST = "structures: {files: a.xyz}\n"


def parse(text: str) -> Plan:
    return parse_config(Plan, text, "plan.yaml")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_guide_has_every_key_as_it_is(section: str) -> None:
    assert table_of(SECTIONS[section]) in GUIDE.read_text()
    assert all(key.text for key in keys_of(SECTIONS[section]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "relaxx:\n", "line 2: unknown key relaxx, did you mean relax?"),
        (LEAST + "md:\n  stps: 5\n", "line 3: unknown key md.stps, did you mean steps?"),
        (LEAST + "md:\n  steps: many\n", "line 3: md.steps is 'many': expected a whole number"),
        (LEAST + "md:\n  steps: -1\n", "line 3: md.steps is -1: expected 0 or more"),
        (LEAST + "md:\n  temperatures: [-3]\n", "line 3: md.temperatures is -3"),
        (LEAST + "md:\n  seeds: [1, 1]\n", "line 3: md.seeds is [1, 1]: expected one or more"),
        (LEAST + "md:\n  ensemble: nvf\n", "line 3: md.ensemble is 'nvf': expected nve or nvt"),
        (LEAST + "md:\n  thermostat: bussi\n", "line 3: md.thermostat is an option of ensemble"),
        (LEAST + "md:\n  start: relaxed\n", "md.start is relaxed, but the plan relaxes nothing"),
        (LEAST + "md:\n  start: last\n", "line 3: md.start is 'last': expected one of"),
        (LEAST + "relax:\n  pressure: 2\n", "line 3: relax.pressure has no effect while the cell"),
        (LEAST + "relax:\n  optimizer: x\n", "line 3: relax.optimizer is 'x': expected lbfgs"),
        (LEAST, "no run is planned: add relax, md, evaluate or hessian"),
        ("relax:\n", "line 1: structures.files is missing: give files, or smiles"),
        (LEAST + "model: {threads: 0}\nmd:\n", "line 2: model.threads is 0: expected 1 or more"),
        (LEAST + "model: {units: [ev]}\nmd:\n", "line 2: model.units is ['ev']: expected"),
        (LEAST + "md: {steps: 1}\nmd: {steps: 2}\n", "line 3: md is given twice, in line 2 too"),
        (LEAST + "md: {steps: !!python/name:os.system 1}\n", "line 2: md.steps has the tag"),
    ],
)
def test_mistakes_name_line_and_key(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"plan\.yaml, line") as error:
        parse(text)
    assert message in str(error.value), error.value
    assert "--" not in str(error.value)


def test_runs_of_a_plan() -> None:
    plan = parse(
        LEAST + "relax: {fmax: 0.02}\nmd: {temperatures: [300, 450.5], seeds: [1, 2], steps: 7}\n"
        "evaluate: {start: given}\nhessian:\n"
    )
    tasks = {task.name: task for task in tasks_of(plan, ["1-a", "2-b"])}
    assert [name.removeprefix("2-b/") for name in tasks if name.startswith("2-b/")] == [
        *("relax", "md-300K-seed1", "md-300K-seed2", "md-450.5K-seed1", "md-450.5K-seed2"),
        *("evaluate", "hessian"),
    ]
    assert len(tasks) == 14
    assert tasks["2-b/md-450.5K-seed2"].settings["temperature"] == 450.5
    assert tasks["2-b/md-450.5K-seed2"].settings["seed"] == 2
    assert tasks["1-a/relax"].settings["fmax"] == 0.02
    assert {task.structure for name, task in tasks.items() if name.startswith("2-b")} == {1}
    after = {name.split("/")[1]: task.after for name, task in tasks.items() if "1-a" in name}
    assert after["relax"] is after["evaluate"] is None
    assert after["md-300K-seed1"] == after["hessian"] == "1-a/relax"


def test_without_relaxations_runs_begin_with_the_given_structure() -> None:
    [task] = tasks_of(parse(LEAST + "md:\n"), ["1-a"])
    assert task.after is None


def test_structures_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    water = molecule("H2O")
    write("b.xyz", [water, molecule("CH4")])
    write("a.xyz", water)
    Path("c.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0\n")
    given = read_given(StructuresSection(files=["*.xyz", "b.xyz@1"]))
    assert [each.source for each in given] == ["a.xyz", "b.xyz@0", "b.xyz@1", "c.xyz", "b.xyz@1"]
    assert isinstance(given[3].structure, ValueError)
    assert "in one place" in str(given[3].structure)
    assert isinstance(given[2].structure, Atoms)
    assert folder_names(given) == ["1-a", "2-b", "3-b", "4-c", "5-b"]
    assert len(read_given(StructuresSection(files="*.xyz", limit=2))) == 2
    for wrong in ("none.xyz", "none*.xyz"):
        with pytest.raises((ValueError, OSError), match=r"none.*no such file"):
            read_given(StructuresSection(files=wrong))


def test_structures_of_smiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rdkit", reason="RDKit reads SMILES")
    monkeypatch.chdir(tmp_path)
    Path("a.smi").write_text("CCO the ethanol\n\nO\n")
    Path("b.csv").write_text("name,smiles\nacetate,CC(=O)[O-]\nwrong,C(C\n")
    given = read_given(StructuresSection(smiles="a.smi"))
    assert [(each.source, each.label) for each in given] == [("CCO", "the ethanol"), ("O", "H2O")]
    assert folder_names(given) == ["1-the_ethanol", "2-H2O"]
    acetate, wrong = read_given(StructuresSection(smiles="b.csv"))
    assert isinstance(acetate.structure, Atoms)
    assert acetate.structure.info == {"charge": -1}
    assert acetate.structure.get_chemical_formula("hill") == "C2H3O2"
    assert "no SMILES that RDKit can read" in str(wrong.structure)
    with pytest.raises(ValueError, match=r"structures.smiles: CCO: no such file .*\[CCO\]"):
        read_given(StructuresSection(smiles="CCO"))
    Path("c.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match="expected one named smiles"):
        read_given(StructuresSection(smiles="c.csv"))


def test_a_geometry_of_smiles_is_sensible_and_always_the_same() -> None:
    pytest.importorskip("rdkit", reason="RDKit reads SMILES")
    one, two = embed("c1ccccc1"), embed("c1ccccc1")
    assert (one.positions == two.positions).all()
    assert (one.positions != embed("c1ccccc1", seed=3).positions).any()
    bonds = [one.get_distance(k, k + 1) for k in range(5)]
    assert np.allclose(bonds, 1.39, atol=0.02)
    assert np.isclose(embed("[2H]O[2H]").get_masses().sum(), 20.03, atol=0.01)
