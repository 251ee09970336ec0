# Everything a newcomer runs. `make demo` and `make test` are all the README asks for; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test check format bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 "$(CURDIR)/.venv/lib" || true  # on all cores, where pip would use one
	touch $@

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# In five parts side by side: two of them mostly wait for servers and workers.
named = $(addprefix tests/flows/test_,$(addsuffix .py,$(1)))
DESK := $(call named,browser deploy desk forms)
SERVED := $(call named,hands prefect spread watching)
test: .venv/installed
	$(BIN)/python -m pytest $(DESK) & desk=$$!; \
	$(BIN)/python -m pytest $(SERVED) & served=$$!; \
	$(BIN)/python -m pytest tests/flows $(addprefix --ignore=,$(DESK) $(SERVED)) & flows=$$!; \
	$(BIN)/python -m pytest tests/stages tests/pocket & stages=$$!; \
	$(BIN)/python -m pytest $(addprefix --ignore=tests/,flows stages pocket); failed=$$?; \
	for part in $$desk $$served $$flows $$stages; do wait $$part || failed=$$?; done; exit $$failed

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
