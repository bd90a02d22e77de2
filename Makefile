# The interpreter that .venv is made with: 3.11 or newer.
PYTHON ?= python3

# With bytecode from the last run, each worker of the tests and each task of Airflow starts seconds earlier.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo say-demo test say-test test-system test-browser test-distributed test-compat standalone bench docs lint types format clean

help:
	@echo "make demo         run the example DAGs: real Airflow, emulated RunGen service, no key needed (two to three minutes)"
	@echo "make test         run the tests on all cores, in six minutes on two (ARGS=\"-k name -x\" passes arguments to pytest)"
	@echo "make test ARGS=\"-m contract\"  run only those that prove a promise to users"
	@echo "make test-system  run the tests that start a real Airflow and kill parts of it (AIRFLOWS=2 at a time; minutes)"
	@echo "make test-browser click through Airflow in a real browser, and renew docs/images (Debian; minutes)"
	@echo "make test-distributed  run the tests that lose workers and triggerers of an Airflow with CeleryExecutor (minutes)"
	@echo "make test-compat  run the tests on each Airflow and Python, and renew docs/compatibility.md (three hours; ONLY=3.1 for some)"
	@echo "make standalone   Airflow with the example DAGs and the emulator, until Ctrl-C (PORT=8080 sets the UI's port)"
	@echo "make bench        measure what it costs, beside others, and renew docs/benchmarks (an hour)"
	@echo "make docs         build the documentation into build/docs; a warning is an error"
	@echo "make lint         check style, formatting, imports between layers, and prose"
	@echo "make types        check types"
	@echo "make format       format the code"
	@echo "make clean        remove what the other targets made"
	@echo
	@echo "They install what they need into $(VENV). PYTHON=python3.12 chooses another interpreter than python3."

$(READY): pyproject.toml emulator/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try  make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV), once. It takes one to three minutes:"
	@$(PYTHON) scripts/set_up.py dev
	@touch $(READY)

demo: say-demo $(READY)
	@$(BIN)/python scripts/demo.py

say-demo:
	@echo "Runs the example DAGs in a real Airflow, against an emulator of RunGen: two to three minutes."

standalone: $(READY)
	@$(BIN)/python scripts/standalone.py

test: say-test $(READY)
	@$(BIN)/python -m pytest -n auto $(ARGS)

say-test:
	@echo "Runs the tests on all cores: about six minutes on two, less on more."

# how many Airflows share the system tests, which mainly wait; each takes 1 GB
AIRFLOWS ?= 2
test-system: $(READY)
	@$(BIN)/python scripts/set_up.py system
	@$(BIN)/python -m pytest -m system -n $(AIRFLOWS) $(ARGS)

test-browser: $(READY)
	@$(BIN)/python scripts/set_up.py browser
	@$(BIN)/python -m pytest -m browser tests/browser

test-distributed: $(READY)
	@$(BIN)/python scripts/set_up.py dev distributed
	@$(BIN)/python -m pytest -m distributed

test-compat:
	@$(PYTHON) -m compat $(if $(ONLY),--only $(ONLY))

bench: $(READY)
	@$(BIN)/python scripts/set_up.py bench
	@$(BIN)/python -m bench

docs: $(READY)
	@$(BIN)/python scripts/set_up.py docs
	@$(BIN)/python -m sphinx --fail-on-warning --nitpicky --keep-going --fresh-env --quiet docs build/docs
	@! grep -rnE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//' build/docs --include='*.html'  # works offline
	@echo "build/docs/index.html"

lint: $(READY)
	@$(BIN)/python -m ruff check --no-cache .  # a cached verdict on imports outlives the module that was moved
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/codespell
	@$(BIN)/python scripts/prose.py

types: $(READY)
	@$(BIN)/python -m mypy

format: $(READY)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) .demo .standalone .compat dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
