# Every target sets up what it needs: uv if it is there, pip otherwise.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin

.PHONY: demo test lint peers parity clean

demo: $(VENV)/ready
	$(BIN)/python tests/support/demo.py

test: $(VENV)/ready lint
	$(BIN)/python -m pytest -m "not parity and not peers"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(VENV)/ready
	$(BIN)/python -m pytest -m peers

parity: $(PARITY)/ready
	$(PARITY)/bin/python -m pytest -m parity tests/parity

$(VENV)/ready: pyproject.toml
	@if command -v uv >/dev/null; then uv venv -q --allow-existing --python 3.11 $(VENV) && uv pip install -q --python $(BIN)/python -e . --group dev; \
	else $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --upgrade pip && $(BIN)/python -m pip install -q -e . --group dev; fi
	@touch $@

# PyTorch comes first and alone, in the build the references were recorded with; the two reference
# packages bring their own demands, which inference does not need.
$(PARITY)/ready: pyproject.toml
	@$(PYTHON) -m venv $(PARITY)
	@$(PARITY)/bin/python -m pip install -q --upgrade pip
	@$(PARITY)/bin/python -m pip install -q torch==2.13.0
	@$(PARITY)/bin/python -m pip install -q --no-deps huggingface-hub-rvc==0.1.4 rvc-next==0.2.16
	@$(PARITY)/bin/python -m pip install -q transformers==5.23.0 librosa==0.11.0 pydantic typer
	@$(PARITY)/bin/python -m pip install -q -e . --group dev
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY) demo-output .mypy_cache .pytest_cache .ruff_cache
