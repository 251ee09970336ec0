# Everything a newcomer runs. `make demo` and `make test` are all the README asks for; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test check format bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# In three parts side by side: the first mostly waits for servers and workers.
SERVED := $(addprefix tests/flows/test_,$(addsuffix .py,browser deploy desk forms hands prefect spread watching))
test: .venv/installed
	$(BIN)/python -m pytest $(SERVED) & served=$$!; \
	$(BIN)/python -m pytest tests/flows $(addprefix --ignore=,$(SERVED)) & flows=$$!; \
	$(BIN)/python -m pytest --ignore=tests/flows; rest=$$?; \
	wait $$served; served=$$?; wait $$flows && [ $$served = 0 ] && exit $$rest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/tf bench pocket mini --scale -o benchmarks/results/bench-cpu.json

clean:
	rm -rf .venv out
