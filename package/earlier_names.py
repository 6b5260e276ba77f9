"""Earlier names of modules that the documentation of version 0.1.0 mentioned."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW_NAMES = {
    "tensormd.md_runs.cli": "tensormd.md_runs.command.main",
    "tensormd.md_runs.config_file": "tensormd.md_runs.runs.schema",
    "tensormd.md_runs.dynamics": "tensormd.md_runs.md.loop",
    "tensormd.md_runs.evaluation": "tensormd.md_runs.evaluate.evaluation",
    "tensormd.md_runs.report": "tensormd.md_runs.reports.runs",
    "tensormd.md_runs.run_folder": "tensormd.md_runs.runs.folder",
    "tensormd.md_runs.settings": "tensormd.md_runs.runs.settings",
    "tensormd.md_runs.train.schema": "tensormd.md_runs.runs.schema",
    "tensormd.md_runs.train_config": "tensormd.md_runs.train.config",
    "tensormd.md_runs.train_run": "tensormd.md_runs.train.run",
    "tensormd.models.cartesian": "tensormd.models.maths.cartesian",
    "tensormd.models.cp": "tensormd.models.maths.cp",
    "tensormd.models.cp_fit": "tensormd.models.maths.cp_fit",
    "tensormd.models.harmonics": "tensormd.models.maths.harmonics",
    "tensormd.models.irreps": "tensormd.models.analysis",
    "tensormd.models.irreps.maps": "tensormd.models.analysis.maps",
    "tensormd.models.kernels": "tensormd.models.inference.kernels",
    "tensormd.models.kernels.operator": "tensormd.calculators.torch_operator",
    "tensormd.models.orders": "tensormd.models.analysis.pruning",
    "tensormd.models.properties": "tensormd.models.quantities",
    "tensormd.models.tabulated": "tensormd.models.inference.tables",
    "tensormd.models.tdn_product": "tensormd.models.networks.tdn_product",
}


class _Finder(MetaPathFinder, Loader):
    """Imports the current module for an earlier name."""

    _own: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in NEW_NAMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = NEW_NAMES[spec.name]
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the own spec of the current module, which has already run."""
        module.__spec__ = self._own


def install() -> None:
    """Make the earlier names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First in the list: Python would load modules of a renamed package a second time.
        sys.meta_path.insert(0, _Finder())
