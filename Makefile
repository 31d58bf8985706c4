# Two commands for a newcomer: `make demo` and `make test`. Both set up what they need and are quick the second time.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: demo test check test-editors editor-latency scorecard gpu clean

demo: .venv/.product
	@$(BIN)/stopgap fill examples/inventory.py --marker '# fill here'

test: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest $(PYTEST_FLAGS)

check: test
	$(BIN)/pyright --pythonpath $(BIN)/python

# The editors themselves, in a cache folder of the user's; Emacs and Chromium only where apt may install them.
test-editors: .venv/.tests
	PYTHON=$(CURDIR)/$(BIN)/python tests/nvim/install
	tests/emacs/install
	tests/vscode/setup.sh
	$(BIN)/pytest -rs tests/test_nvim.py tests/test_emacs.py tests/test_vscode.py

# From the last key to ghost text in each editor that is there, and where the time goes (wants an idle machine).
editor-latency: .venv/.tests
	@OMP_NUM_THREADS=1 $(BIN)/python -P tests/editor_latency.py

# The first 25 minutes on a GPU: checks, benchmarks, block sizes. Records go into kernels/measured.
gpu: .venv/.tests
	BIN=$(BIN) tests/gpu_session.sh

.venv/.product: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "stopgap needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3"; exit 2; }
	@echo "Setting up .venv with $(PYTHON) (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian and Ubuntu, apt install python3-venv"; rm -rf .venv; exit 2; }
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/.tests: .venv/.product
	@echo "Installing what the tests need ..."
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The starter's numbers, half an hour of one core: HUMANEVAL is the folder of HumanEval-Infilling's *.jsonl.gz, HELDOUT
# a folder with the unpacked packages that training never saw. What they hold is not ours, so only numbers are kept of
# it; the sample fills are holes of our own code. Milliseconds are processor time on one thread.
EVAL := $(BIN)/stopgap eval --threads 1 --clock processor
SCORES := infill/data/scorecard
STEPS := --steps 1 --steps 4 --steps 8 --steps 16 --steps 32
PYTHON_HOLES := holes $(HELDOUT) --language python
scorecard: .venv/.tests
	$(EVAL) $(PYTHON_HOLES) --kind line --limit 200 $(STEPS) --out $(SCORES)/lines
	$(EVAL) humaneval-infilling $(HUMANEVAL)/HumanEval-SingleLineInfilling.jsonl.gz --limit 150 $(STEPS) \
		--out $(SCORES)/single-line
	$(EVAL) humaneval-infilling $(HUMANEVAL)/HumanEval-MultiLineInfilling.jsonl.gz --limit 150 --out $(SCORES)/multi-line
	$(EVAL) humaneval-infilling $(HUMANEVAL)/HumanEval-RandomSpanInfillingLight.jsonl.gz --limit 150 \
		--out $(SCORES)/random-span
	$(EVAL) $(PYTHON_HOLES) --kind node --limit 300 --out $(SCORES)/nodes
	$(EVAL) holes daemon lsp --language python --kind line --kind tail --kind block --kind node --limit 120 \
		--out $(SCORES)/fills
	find $(SCORES) -type f ! -name report.md ! -name plot.svg ! -path '*/fills/fills.md' -delete

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
