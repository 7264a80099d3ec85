# `make demo` and `make test` each work as the first command on a clean clone.
PYTHON ?= python3
BIN := .venv/bin
PRETRAINED := robust_models/pretrained
QUALITY := $(BIN)/python -m eval quality --reference $(PRETRAINED)/cifar10-train-statistics.npz \
	--features classifier:cifar10-standard-small

.PHONY: demo test check docs dist format oracles clean

demo: .venv/installed  ## generated images beside the same images refined, with scores before and after
	$(BIN)/python -m refine --ckpt cifar10-l2-small --input $(PRETRAINED)/vae-cifar10.npz \
		--out demo/refined.npz --eps 4 --grid demo/before_after.png --overwrite
	@echo; echo "before:"; $(QUALITY) --images $(PRETRAINED)/vae-cifar10.npz
	@echo "after:"; $(QUALITY) --images demo/refined.npz
	@echo; echo "Look at demo/before_after.png"

test: .venv/installed-dev  ## files of tests side by side, a thread each; `python -m pytest` runs them one after another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/installed-dev  ## the site, in build/site; a broken link or reference fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs build/site
	@echo "build/site/index.html"

dist: .venv/installed-dev  ## wheel and sdist, in dist
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --outdir dist

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

oracles: .venv/installed-dev  ## other people's packages that tests compare with, beside the environment's own
	bash tests/oracles/install.sh $(BIN)/python
	bash tests/oracles/install_quality.sh $(BIN)/python

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build demo *.egg-info
