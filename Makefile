# make install | demo | test | lint | bench | readme | kernels | oldest-triton : each makes .venv first where it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes of one thread each are the fastest arrangement on two cores.
TEST_PROCESSES ?= 2

.PHONY: install demo test lint bench readme kernels oldest-triton clean
.DEFAULT_GOAL := install

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade -e '.[dev,hf,tensorboard]'
	touch $@

demo: install
	$(BIN)/python -m experiments.demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

# What the README tells a new user to type, as it stands there, but for its make targets.
readme: install
	sed -n '/^```sh$$/,/^```$$/p' README.md | grep -v -e '^```' -e '^make ' | bash -euxo pipefail

# Every shipped kernel compiled for GPUs that are not here: sm_80, sm_90, sm_100.
ARCHITECTURES ?= 80 90 100
kernels: install
	TRITON_INTERPRET=0 $(BIN)/python -m benchmarks.compile_kernels --architecture $(ARCHITECTURES)

# The fused kernels under the oldest Triton that we support; its interpreter needs NumPy below 2.4.
oldest-triton: $(VENV)/triton-3.6
	PYTHONPATH=$(VENV)/triton-3.6 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) tests/kernels/test_fused.py

$(VENV)/triton-3.6: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $@ 'triton==3.6.0' 'numpy<2.4'

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
