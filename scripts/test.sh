#!/usr/bin/env bash
# Sets up .venv, then runs ruff and the test suite; fails when either fails.
#   scripts/test.sh [--fast] [pytest arguments]
#   --fast    leaves out the tests marked slow (each has a short twin)
# Tests on real images read KWTL_DATA (default: ../shared/data, where that exists) and skip without it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
setup_env test

arguments=()
for argument in "$@"; do
    if [ "$argument" = --fast ]; then
        arguments+=(-m "not slow")
    else
        arguments+=("$argument")
    fi
done

if [ -z "${KWTL_DATA:-}" ] && [ -d ../shared/data ]; then
    KWTL_DATA=$(cd ../shared/data && pwd)
    export KWTL_DATA
fi
# Two threads: the networks under test are small, and results do not depend on the machine's number of cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-${OMP_NUM_THREADS:-2}}"

lint=0
"$VENV_PYTHON" -m ruff check . || lint=$?
tests=0
"$VENV_PYTHON" -m pytest ${arguments[@]+"${arguments[@]}"} || tests=$?
[ "$lint" -eq 0 ] || fail "ruff check failed: see the top of this output."
exit "$tests"
