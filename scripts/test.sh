#!/usr/bin/env bash
# Sets up .venv, then runs ruff and the test suite; then sets up .venv-label and runs the tests of the label server
# there, unless the arguments name tests. Fails when any of these fails. The last lines say what was skipped, and why.
#   scripts/test.sh [--fast] [--no-label] [pytest arguments]
#   --fast        leaves out the tests marked slow (each has a short twin)
#   --no-label    leaves out the label server and its environment
# Each core runs tests, four at most; -n 0 among the arguments runs them in one process.
# Tests on real images read KWTL_DATA (default: ../shared/data, where that exists) and skip without it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
setup_env test

arguments=()
label=1
named=0
for argument in "$@"; do
    case $argument in
        --fast) arguments+=(-m "not slow") ;;
        --no-label) label=0 ;;
        *)
            arguments+=("$argument")
            # some tests were asked for by their path: those alone
            if [ -e "${argument%%::*}" ]; then label=0 named=1; fi
            ;;
    esac
done

if [ -z "${KWTL_DATA:-}" ] && [ -d ../shared/data ]; then
    KWTL_DATA=$(cd ../shared/data && pwd)
    export KWTL_DATA
fi
# A thread for each process: many tests start processes of their own, and none of their networks is large.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-${OMP_NUM_THREADS:-1}}"
# A file of tests stays in one process. tests/conftest.py puts those first that take longest, so they are not reordered.
shared=()
cores=$(getconf _NPROCESSORS_ONLN)
if [ "$named" -eq 0 ] && [ "$cores" -gt 1 ]; then
    shared=(-n "$((cores < 4 ? cores : 4))" --dist loadfile --no-loadscope-reorder)
fi
KWTL_SKIPPED=$(mktemp)
export KWTL_SKIPPED
trap 'rm -f "$KWTL_SKIPPED"' EXIT

run_tests() {
    "$@" ${shared[@]+"${shared[@]}"} ${arguments[@]+"${arguments[@]}"}
}

lint=0
"$VENV_PYTHON" -m ruff check . || lint=$?
tests=0
server=0
if [ "$named" -eq 1 ]; then
    run_tests "$VENV_PYTHON" -m pytest || tests=$?
else
    run_tests "$VENV_PYTHON" -m pytest --ignore=tests/label || tests=$?
fi
if [ "$label" -eq 1 ]; then
    bash scripts/label_setup.sh test
    run_tests .venv-label/bin/python -m pytest tests/label || server=$?
    # 5: none of the tests that were asked for is there
    if [ "$server" -eq 5 ] && [ "$#" -gt 0 ]; then server=0; fi
fi

if [ -s "$KWTL_SKIPPED" ]; then
    printf '\nSkipped:\n'
    cat "$KWTL_SKIPPED"
else
    printf '\nNothing was skipped.\n'
fi
[ "$lint" -eq 0 ] || fail "ruff check failed: see the top of this output."
[ "$tests" -eq 0 ] || exit "$tests"
exit "$server"
