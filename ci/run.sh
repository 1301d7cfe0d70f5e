#!/usr/bin/env bash
# What CI runs: the README's test command in a new virtual environment, then style, types and the documentation site.
#
#     bash ci/run.sh              with python3.11, or PYTHON=python3.12 bash ci/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
# shellcheck disable=SC1091
source "$work/venv/bin/activate"

pip install -e '.[dev]' && pytest

ruff check .
ruff format --check .

mypy --cache-dir "$work/mypy" -p llmc
# tests/llmc stands in the way of the package: by path, it would be `llmc`
MYPYPATH=tests mypy --cache-dir "$work/mypy" --explicit-package-bases tests/support tests/quant tests/runtime
MYPYPATH=ci/gpu mypy --cache-dir "$work/mypy" --explicit-package-bases ci/gpu # which CI cannot run

NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$work/site"
