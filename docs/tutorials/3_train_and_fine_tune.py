# %% [markdown]
# # Train and fine-tune
#
# You have forty frames of one molecule, labelled by a method that you trust. Which is better: a
# new network trained on them, or a network that knows the molecule from another method,
# fine-tuned? Here `organic` plays the trusted method, so that the tutorial needs no quantum
# chemistry; `ethanol`, trained on PBE energies, is what is fine-tuned.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.io import read, write

from tensormd.calculators import TensorNetCalculator
from tensormd.md_runs.evaluate.evaluation import evaluate_checkpoint
from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.runs.schema import read_config
from tensormd.md_runs.runs.settings import MDSettings
from tensormd.md_runs.train.config import TrainConfig
from tensormd.md_runs.train.run import start_training

# %% [markdown]
# ## Frames
#
# Energies (eV) and forces (eV/Å) at geometries of a run at 500 K. Extended XYZ holds both; your
# own come from your program through ASE.

# %%
atoms = molecule("CH3CH2OH")
atoms.calc = TensorNetCalculator("organic")
start_md(
    atoms, MDSettings(ensemble="nvt", temperature=500, steps=2800, interval=20, seed=1), "run"
)
frames = read("run/trajectory.extxyz", ":")[1:]
order = np.random.default_rng(0).permutation(len(frames))
write("mine.extxyz", [frames[k] for k in order[:40]])
write("test.extxyz", [frames[k] for k in order[40:]])
print(len(order[:40]), "frames to learn from,", len(order[40:]), "to test")

# %% [markdown]
# ## Two trainings
#
# Configurations are YAML; `tensormd train config.yaml -o new` is the same in a terminal. Keys
# that are not given have defaults, and a misspelt key is an error.

# %%
Path("new.yaml").write_text("""
data: {train: mine.extxyz, split: [36, 4]}
model:
  tensornet: {channels: 32, cutoff: 4.5}
training: {epochs: 150, batch: 4, learning_rate: 2e-3, warm_up_steps: 50, validate_every: 15}
""")
Path("tuned.yaml").write_text("""
data: {train: mine.extxyz, split: [36, 4]}
model:
  start_from: ethanol
  refit: all
training: {epochs: 20, batch: 4, learning_rate: 2e-4, warm_up_steps: 20, validate_every: 2}
""")
for name in ("new", "tuned"):
    start_training(read_config(TrainConfig, Path(f"{name}.yaml")), Path(name))

# %% [markdown]
# ## Which is better?
#
# Errors on the frames that neither has seen. `ethanol` as it ships is the third bar: its forces
# are those of another method.

# %%
errors = {}
for label, checkpoint in (
    ("ethanol as it ships", "ethanol"),
    ("new network", "new/last.safetensors"),
    ("fine-tuned", "tuned/last.safetensors"),
):
    found = evaluate_checkpoint(checkpoint, "test.extxyz")
    errors[label] = found.summary()["force_mev_per_angstrom"]["mae"]
    print(f"{label:20s} {errors[label]:6.1f} meV/A")

figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
axes.barh(list(errors), list(errors.values()))
_ = axes.set_xlabel("mean absolute error of forces / (meV/Å)")

# %% [markdown]
# Both new potentials are ready to use: `TensorNetCalculator("tuned/last.safetensors")`, or `-m
# tuned/last.safetensors` on the command line. More: [training](../guide/training.md),
# [fine-tuning](../guide/fine_tuning.md).
