# shellcheck shell=bash
# Sourced by demo.sh and test.sh: enters the checkout and its virtual environment, which the first call makes.
# FIDUCIAL_VENV names another place for it; FIDUCIAL_PYTHON the interpreter that makes it.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv=${FIDUCIAL_VENV:-.venv}
wanted=$(cat requirements.txt requirements-dev.txt requirements.lock | cksum)

if [ ! -x "$venv/bin/python" ]; then
    "${FIDUCIAL_PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Fiducial needs Python 3.11 or later; name one with FIDUCIAL_PYTHON" >&2
        exit 1
    }
    "${FIDUCIAL_PYTHON:-python3}" -m venv "$venv"
fi
if [ "$(cat "$venv/fiducial-requirements" 2>/dev/null)" != "$wanted" ]; then
    echo "installing the requirements into $venv (some 6 GB with CUDA's libraries; minutes, once)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement requirements.txt --requirement requirements-dev.txt --constraint requirements.lock
    echo "$wanted" > "$venv/fiducial-requirements"
fi
# shellcheck source=/dev/null
source "$venv/bin/activate"
