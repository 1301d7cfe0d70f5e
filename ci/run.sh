#!/usr/bin/env bash
# What CI runs: the README's test command in a new virtual environment, then style and types.
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

# mypy knows nothing of package-dir, by which pyproject.toml lays convert/, quant/, … below llmc. A tree of links that
# looks like the installed package shows it the same names.
mkdir -p "$work/types/llmc"
ln -s "$PWD"/llmc/* "$PWD"/{convert,quant,runtime,recipes} "$work/types/llmc"
cd "$work/types"
mypy --config-file "$OLDPWD/pyproject.toml" --cache-dir "$work/mypy" -p llmc
