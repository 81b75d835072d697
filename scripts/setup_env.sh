# Makes the virtual environment .venv and keeps it up to date. Source it from the repository root, then call
# `setup_env` (what the package needs) or `setup_env test` (the tools of the test suite as well); VENV_PYTHON is set.
# A stamp remembers what was installed, so a second call costs a fraction of a second and needs no network.
# PYTHON names the interpreter that a new .venv is made with; pip's own configuration is respected.

# Threads that wait for one another sleep, unless the user chose: they would spin, and take the cores of other processes.
# monai_kwtl/cli/threads.py says the same for kwtl and scripts/benchmark.py.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

# scripts/label_setup.sh makes another environment with the same functions: it sets these four differently.
VENV=.venv
VENV_PYTHON=$VENV/bin/python
VENV_SIZE="about 3 GB"
VENV_FILES="setup.cfg setup.py pyproject.toml constraints.txt"
install_packages() {
    "$VENV_PYTHON" -m pip install --no-input --disable-pip-version-check --no-user --progress-bar off \
        -c constraints.txt -e ".${1:+[$1]}"
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

is_python310() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && is_python310 "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Everything an installation depends on; the folder too, because an editable installation names it.
fingerprint() {
    # shellcheck disable=SC2086 - a list of names without spaces
    "$VENV_PYTHON" -I -c '
import hashlib, os, sys
digest = hashlib.sha256(f"{sys.version} {os.getcwd()}".encode())
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())' $VENV_FILES
}

# The stamp of an extra also covers the plain installation.
is_installed() {
    local extra wanted
    wanted=$(fingerprint 2>/dev/null) || return 1
    for extra in "$@"; do
        [ "$(cat "$VENV/.installed-$extra" 2>/dev/null)" = "$wanted" ] && return 0
    done
    return 1
}

setup_env() {
    local extra="${1:-}" python owner
    # matplotlib would otherwise keep its font cache in the home folder, and complain where there is none
    export MPLCONFIGDIR="${MPLCONFIGDIR:-$PWD/$VENV/matplotlib}"
    if [ -e "$VENV/.incomplete" ]; then
        # The mark holds the process that set up: alive, it is at work; gone, it was interrupted.
        owner=$(cat "$VENV/.incomplete")
        if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
            fail "Another set-up of $VENV is running (process $owner): wait until it is through."
        fi
    elif [ -n "$extra" ]; then
        if is_installed "$extra"; then return; fi
    elif is_installed base test; then
        return
    fi

    if [ -e "$VENV" ] || [ -L "$VENV" ]; then
        if [ -e "$VENV/.incomplete" ] || ! is_python310 "$VENV_PYTHON" || ! "$VENV_PYTHON" -m pip -V >/dev/null 2>&1; then
            printf 'Removing a half-made or broken %s\n' "$VENV" >&2
            rm -rf "$VENV"
        fi
    fi
    if [ -e "$VENV" ]; then
        printf 'Bringing %s up to date ...\n' "$VENV" >&2
    else
        python=$(find_python) || fail "KWTL needs Python 3.10 or newer: install it, or set PYTHON to its path."
        printf 'Setting up %s (first time: a few minutes, %s on disk) ...\n' "$VENV" "$VENV_SIZE" >&2
        # The mark goes in first and comes out last: an interrupted set-up is started afresh next time.
        mkdir "$VENV" && printf '%s\n' "$$" >"$VENV/.incomplete"
        if ! "$python" -m venv "$VENV" >"$VENV/install.log" 2>&1 || ! is_python310 "$VENV_PYTHON"; then
            rm -rf "$VENV"
            fail "$python cannot make a virtual environment: install its venv module (often packaged as python3-venv)."
        fi
    fi
    if ! install_packages "$extra" >"$VENV/install.log" 2>&1; then
        grep -E '^ERROR' "$VENV/install.log" >&2 || tail -n 3 "$VENV/install.log" >&2
        fail "The installation failed; $VENV/install.log has it all. Fix what it says and run this again."
    fi
    # Builds matplotlib's font cache now instead of in the first run.
    "$VENV_PYTHON" -c 'import matplotlib.font_manager' >/dev/null 2>&1 || true
    fingerprint >"$VENV/.installed-${extra:-base}"
    rm -f "$VENV/.incomplete"
}
