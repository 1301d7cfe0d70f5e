#!/usr/bin/env bash
# What CI runs: the README's test command in a new virtual environment; style, types and the documentation site beside it.
#
#     bash ci/run.sh              with python3.11, or PYTHON=python3.12 bash ci/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
# shellcheck disable=SC1091
source "$work/venv/bin/activate"

# Of 300 MB of Python only what is imported is compiled, and once for all of the many processes that tests start.
export PIP_COMPILE=0 PYTHONPYCACHEPREFIX="$work/pycache"
unset PYTHONDONTWRITEBYTECODE

checks() {
    ruff check .
    ruff format --check .

    mypy --cache-dir "$work/mypy" -p llmc
    # tests/llmc stands in the way of the package: by path, it would be `llmc`
    MYPYPATH=tests mypy --cache-dir "$work/mypy" --explicit-package-bases tests/support tests/quant tests/runtime
    MYPYPATH=ci/gpu mypy --cache-dir "$work/mypy" --explicit-package-bases ci/gpu # which CI cannot run

    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$work/site"
}

pip install -e '.[dev]'

# In the time that tests wait for something: they come first.
(renice -n 19 -p "$BASHPID" >"$work/renice" 2>&1 || true; checks) >"$work/checks.log" 2>&1 &
status=0
pytest || status=$?
wait $! || status=$?
cat "$work/checks.log"
exit "$status"
