"""The package itself: version, public names, `python -m tensormd`, earlier names of modules."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

import tensormd
from tensormd.earlier_names import NEW_NAMES

PUBLIC = {
    "tensormd.md_runs.config_file": ["read_config"],
    "tensormd.md_runs.dynamics": ["last_state", "start_md"],
    "tensormd.md_runs.evaluation": ["evaluate_checkpoint"],
    "tensormd.md_runs.report": ["write_report"],
    "tensormd.md_runs.run_folder": ["RunFolder"],
    "tensormd.md_runs.settings": ["MDSettings"],
    "tensormd.md_runs.train_config": ["TrainConfig"],
    "tensormd.md_runs.train_run": ["start_training"],
    "tensormd.models.cartesian": ["BASIS"],
    "tensormd.models.kernels.operator": ["model_tensor"],
    "tensormd.models.properties": ["DipoleReadout", "PolarizabilityReadout"],
    "tensormd.models.tabulated": ["tabulated"],
}
"""What earlier pages imported from modules that have another name now."""


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_version() -> None:
    assert tensormd.__version__ == version("tensormd")
    assert python("-m", "tensormd", "--version") == f"tensormd {tensormd.__version__}"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, tensormd; print('torch' in sys.modules); tensormd.load_potential; "
    assert python("-c", code + "print('torch' in sys.modules)").split() == ["False", "True"]


@pytest.mark.parametrize("name", tensormd.__all__)
def test_public_names(name: str) -> None:
    found: Any = getattr(tensormd, name)
    assert found is not None
    assert name in dir(tensormd)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="'tensormd' has no attribute 'TensorNett'"):
        _ = tensormd.TensorNett  # type: ignore[attr-defined]


@pytest.mark.parametrize("earlier", NEW_NAMES)
def test_earlier_names_are_the_present_modules(earlier: str) -> None:
    sys.modules.pop(earlier, None)
    with pytest.warns(DeprecationWarning, match=NEW_NAMES[earlier]):
        found = importlib.import_module(earlier)
    present = importlib.import_module(NEW_NAMES[earlier])
    assert found is present
    assert present.__spec__ is not None
    assert present.__spec__.name == NEW_NAMES[earlier]
    for name in PUBLIC.get(earlier, []):
        assert hasattr(found, name)
