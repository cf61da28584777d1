# Sourced by scripts/demo and scripts/test: makes and activates .venv at the pinned versions.
#
#   prepare_environment EXTRAS      e.g. prepare_environment examples,plots
#
# Python is $PYTHON, or the first interpreter found that is new enough. pip's own settings (index, proxy,
# certificates, cache) are honoured; nothing here names a host. A second call returns at once unless pyproject.toml,
# constraints.txt, the interpreter or the folder has changed.

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Regard needs Python 3.11 or newer with venv; none found (set PYTHON to name one)." >&2
    return 1
}

prepare_environment() {
    local extras=$1 python place stamp
    python=$(find_python)
    # A virtual environment is tied to its folder and its interpreter.
    place="$(pwd) $("$python" -VV | tr '\n' ' ')"
    if [ "$(cat .venv/place 2>/dev/null)" != "$place" ]; then
        echo "== setting up .venv with $("$python" --version) =="
        "$python" -m venv --clear .venv
        echo "$place" >.venv/place
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
    stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
    if [ "$(cat ".venv/installed-$extras" 2>/dev/null)" != "$stamp" ]; then
        echo "== installing regard[$extras] (downloads PyTorch the first time) =="
        python -m pip install -c constraints.txt -e ".[$extras]"
        echo "$stamp" >".venv/installed-$extras"
    fi
}
