# `make demo` and `make test` need a Linux with Python 3.11 or later, git and make. Nothing else.

PYTHON ?= python3
# The Airflow line to work with; `make test AIRFLOW=2.11` takes the pins of constraints/airflow-2.11.txt.
AIRFLOW ?= 3.3
VENV := .venv-$(AIRFLOW)
BIN := $(VENV)/bin
CONSTRAINTS := constraints/airflow-$(AIRFLOW).txt

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "With AIRFLOW=2.11 (3.1, 3.2, 3.3) on another Airflow; with PYTHON=python3.12 on another Python."

.PHONY: setup
setup: $(VENV)/.ready ## Make the virtual environment (the other targets do it by themselves)

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS) .ci/tools.txt .ci/tools-alone.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[parquet,documents,testing]' --requirement .ci/tools.txt
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-deps --requirement .ci/tools-alone.txt
	@touch $@

.PHONY: test
test: setup lint types imports ## Lint, types, import contract, tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: coverage
coverage: setup lint types imports ## The same, with the lines and branches that no test runs (on Python 3.11 twice the time)
	@rm -rf .cache/coverage
	$(BIN)/python -m coverage run -m pytest --numprocesses 2 --dist loadfile
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python .ci/coverage

.PHONY: demo
demo: setup ## The nightly DAG on real Airflow: documents in, a table of summaries out
	$(BIN)/python .ci/demo

.PHONY: demo-crash
demo-crash: setup ## The same, killed half-way and run again
	$(BIN)/python .ci/demo --crash

.PHONY: matrix
matrix: ## The tests on every supported Airflow and Python, and the DAGs (an hour)
	.ci/programs postgresql mariadb-server
	$(PYTHON) .ci/matrix

.PHONY: e2e
e2e: $(VENV)/.e2e ## Airflow's components and a real browser: form, Test button, log, results; every DAG; triggerer
	.ci/programs chromium postgresql
	$(BIN)/python -m pytest $(if $(filter 2.%,$(AIRFLOW)),tests/e2e/browser/test_airflow_2.py,tests/e2e/browser/test_airflow_3.py tests/e2e/browser/test_page.py tests/e2e/browser/test_page_rows.py tests/e2e/browser/test_report.py tests/e2e/test_deferral.py tests/e2e/test_scheduled.py tests/e2e/test_several_servers.py)

$(VENV)/.e2e: $(VENV)/.ready .ci/e2e-tools.txt constraints/e2e.txt
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --constraint constraints/e2e.txt --requirement .ci/e2e-tools.txt
	@touch $@

.PHONY: e2e-celery
e2e-celery: .venv-celery/.ready ## CeleryExecutor, PostgreSQL, Redis and two workers; and the compose file
	.ci/programs postgresql redis-server
	.venv-celery/bin/python -m pytest tests/e2e/test_celery.py tests/e2e/test_compose.py

.venv-celery/.ready: pyproject.toml constraints/airflow-3.3.txt constraints/e2e.txt $(wildcard .ci/*tools.txt)
	$(PYTHON) -m venv --clear .venv-celery
	.venv-celery/bin/python -m pip install --quiet --constraint constraints/airflow-3.3.txt --constraint constraints/e2e.txt \
	    --editable '.[parquet,documents,testing]' --requirement .ci/tools.txt --requirement .ci/e2e-tools.txt --requirement .ci/celery-tools.txt
	@touch $@

.PHONY: wheel
wheel: $(VENV)/.e2e ## The wheel, installed alone beside every supported Airflow
	$(BIN)/python -m pytest -o tmp_path_retention_policy=failed tests/e2e/test_wheel.py

.PHONY: bench
bench: setup .venv-peers/.ready ## The numbers of docs/design/batch.md, its peers and the last run (half an hour)
	.ci/programs postgresql nginx
	$(BIN)/python tests/benchmarks --keep

.PHONY: soak
soak: setup ## An hour of mixed work, faults, kills and restarts: exact results, nothing that grows (SOAK_MINUTES=5)
	.ci/programs postgresql
	@mkdir -p dist
	$(BIN)/python tests/soak/soak.py --minutes $(or $(SOAK_MINUTES),60) --output dist/soak.json

.venv-peers/.ready: tests/benchmarks/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement tests/benchmarks/requirements.txt
	@touch $@

FUZZED := reply_path compressed_answer jsonl_rows csv_rows part_files batch_manifest page_rows connection host

.PHONY: fuzz
fuzz: .venv-fuzz/.ready ## Search for inputs that break a reader: a minute for each of nine (FUZZ_SECONDS=600, FUZZED=host)
	@for target in $(FUZZED); do \
	    PYTHONPATH=. .venv-fuzz/bin/python tests/fuzz/run.py $$target -max_total_time=$(or $(FUZZ_SECONDS),60) || exit 1; \
	done

.venv-fuzz/.ready: tests/fuzz/requirements.txt constraints/fuzz.txt constraints/airflow-3.3.txt
	$(PYTHON) -m venv --clear .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --constraint constraints/airflow-3.3.txt --constraint constraints/fuzz.txt \
	    --requirement tests/fuzz/requirements.txt
	@touch $@

.PHONY: live
live: setup ## The contract against a real server: OLLAMA_HOST=http://gpu1:11434 make live
	$(BIN)/python -m pytest tests/live

.PHONY: lint
lint: setup ## Style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: setup ## mypy, strict
	$(BIN)/mypy

.PHONY: imports
imports: setup ## Who may import whom
	$(BIN)/lint-imports

.PHONY: audit
audit: setup .venv-audit/.ready ## Known vulnerabilities in what this package brings along (asks an advisory service)
	$(BIN)/python .ci/audit .venv-audit/bin/pip-audit $(CONSTRAINTS)

# Apart from the rest, which shares some of its requirements and pins them.
.venv-audit/.ready: Makefile
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	@touch $@

.PHONY: format
format: setup ## Mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: reference
reference: setup ## Write the tables of arguments and of faults in docs/reference anew
	$(BIN)/python .ci/reference

.PHONY: docs
docs: $(VENV)/.docs ## The site, in dist/docs; a link that leads nowhere is an error
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -c docs . dist/docs
	@echo "dist/docs/index.html"

$(VENV)/.docs: $(VENV)/.ready .ci/docs-tools.txt constraints/docs.txt
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --constraint constraints/docs.txt --requirement .ci/docs-tools.txt
	@touch $@

.PHONY: constraints
constraints: ## Make constraints/ anew, from the releases up to the dates in .ci/pin
	$(PYTHON) -m venv --clear .venv-pins
	.venv-pins/bin/python -m pip install --quiet uv==0.13.9
	.ci/pin .venv-pins/bin/uv

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf .venv-* .airflow .cache dist docs/api .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
