# Two commands: `make demo` draws pictures with the bundled models, `make test` runs the tests.
# Both first make a virtual environment in .venv (once) from the versions pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs

demo: $(VENV)/installed
	$(BIN)/chainrule demo --out demo --force

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist worksteal

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in site/. To read it with its search: $(BIN)/python -m http.server -d site"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
