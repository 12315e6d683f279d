# The two commands that a new user needs: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: setup demo test lint bench bench-losses bench-modalities docs clean

setup: $(VENV)/.ready

$(VENV)/.ready: $(VENV)/.installed
	@echo 'setup: development dependencies for tests, linters and docs (1 GB on disk, a minute or two)'
	@$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
# In a folder of their own: an installed torchvision that does not match torch breaks transformers. Only their tests see it.
	@echo 'setup: timm, torchvision and open_clip in $(VENV)/libraries, for their tests (50 MB on disk, seconds)'
	@$(RUN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/libraries \
	  'timm>=1.0.15,<2' 'torchvision>=0.26,<1' 'open_clip_torch>=3.2,<4' ftfy
	@touch $@

# What running takes, without what developing takes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo 'setup: a virtual environment in $(VENV) (seconds)'
	@$(PYTHON) -m venv $(VENV)
	@echo 'setup: what running takes: PyTorch, Open3D, ... (2.2 GB on disk, several more for CUDA; 1 to 3 minutes)'
	@$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

demo: $(VENV)/.installed
	@echo 'demo: pack data, train three models, evaluate and report, in the folder demo (about 2 minutes on two cores)'
	@$(RUN)/wcord demo

test: setup
	$(RUN)/python -m pytest -n auto --dist worksteal

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

docs: setup
	$(RUN)/python -m mkdocs build --strict

bench: setup
	$(RUN)/python -m benchmarks.throughput

bench-modalities: setup
	$(RUN)/python -m benchmarks.modalities

bench-losses: setup
	$(RUN)/python -m pip install --quiet -e '.[bench]'
	$(RUN)/python -m benchmarks.losses

clean:
	rm -rf $(VENV) demo
