# Every target sets up .venv first (launch/local.sh). Nothing is needed but make, bash and Python 3.11 to 3.14.
.PHONY: help quickstart test benchmark plan-all lint clean

help:
	@echo "make quickstart               the five steps, from raw text to a tuned model, into runs/quickstart"
	@echo "make quickstart TEXT=PATH     the same with your own text added: a file or a folder"
	@echo "make test                     run the tests"
	@echo "make benchmark                how fast it is on this CPU, against transformers on torch (10 minutes)"
	@echo "make plan-all                 compile every recipe for the TPU slice that it names (a minute or two each)"
	@echo "make lint                     check style and formatting"
	@echo "make clean                    delete .venv and caches; runs/ stays"

quickstart:
	@launch/local.sh tpullm run quickstart --run runs/quickstart $${TEXT:+--text "$$TEXT"}

test:
	@launch/local.sh --extra test pytest

# torch and transformers are large and nothing else needs them: they come with the extra.
benchmark:
	@launch/local.sh --extra benchmark python benchmarks/cpu.py --output 'benchmarks/results/cpu-python{python}.json'

plan-all:
	@launch/local.sh --extra tpu python benchmarks/plan_all.py

lint:
	@launch/local.sh --extra test ruff check .
	@launch/local.sh --extra test ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find tpullm tests -name __pycache__ -type d -prune -exec rm -rf {} +
