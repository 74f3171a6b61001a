#!/usr/bin/env bash
# Lint and tests, in the environment of demo.sh. --all adds the long tests; other options go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

select=(-m "not long")
if [ "${1:-}" = --all ]; then
    select=()
    shift
fi
ruff check .
ruff format --check .
if command -v shellcheck > /dev/null; then
    shellcheck --external-sources --source-path=SCRIPTDIR --source-path=. scripts/*.sh scripts/slurm/* .ci/run
fi
parallel=(--numprocesses=auto --maxprocesses=8 --dist=worksteal)
python -m pytest "${parallel[@]}" "${select[@]}" "$@"
if [ ${#select[@]} -eq 0 ]; then
    FIDUCIAL_FAST=1 python -m pytest "${parallel[@]}" tests/test_reliability.py
fi
