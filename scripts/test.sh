#!/usr/bin/env bash
# Sets up .venv, then runs ruff and the test suite; then sets up .venv-label and runs the tests of the label server
# there, unless the arguments name tests. Fails when any of these fails.
#   scripts/test.sh [--fast] [--no-label] [pytest arguments]
#   --fast        leaves out the tests marked slow (each has a short twin)
#   --no-label    leaves out the label server and its environment
# Tests on real images read KWTL_DATA (default: ../shared/data, where that exists) and skip without it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
setup_env test

arguments=()
label=1
for argument in "$@"; do
    case $argument in
        --fast) arguments+=(-m "not slow") ;;
        --no-label) label=0 ;;
        *)
            arguments+=("$argument")
            # some tests were asked for by their path: those alone
            if [ -e "${argument%%::*}" ]; then label=0; fi
            ;;
    esac
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
server=0
if [ "$label" -eq 1 ]; then
    bash scripts/label_setup.sh test
    .venv-label/bin/python -m pytest tests/label ${arguments[@]+"${arguments[@]}"} || server=$?
    # 5: none of the tests that were asked for is there
    if [ "$server" -eq 5 ] && [ "$#" -gt 0 ]; then server=0; fi
fi
[ "$lint" -eq 0 ] || fail "ruff check failed: see the top of this output."
[ "$tests" -eq 0 ] || exit "$tests"
exit "$server"
