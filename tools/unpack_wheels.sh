# Sourced by the fetch_*.sh scripts. The programs of some pinned Python wheels, without a virtual environment.

# fail SENTENCE: stop with one sentence on stderr.
fail() {
    echo "${0##*/}: $1" >&2
    exit 1
}

# up_to_date REQUIREMENTS FOLDER: whether FOLDER was made from exactly these pins.
up_to_date() {
    cmp --silent "$1" "$2/requirements.txt"
}

# unpack_wheels REQUIREMENTS FOLDER: unpack the pinned wheels, checked against their hashes, into the new FOLDER.
unpack_wheels() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "the pinned wheels are for x86-64 Linux, this is $(uname -sm)"
    command -v python3 >/dev/null || fail "python3 is missing: install it (Debian, Ubuntu: apt install python3 python3-pip)"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip: install it (Debian, Ubuntu: apt install python3-pip)"
    # --target needs no virtual environment, also where the system's Python is externally managed (PEP 668).
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
        --only-binary :all: --require-hashes --requirement "$1" --target "$2" ||
        fail "pip could not install the pins of $1 (its own message is above); check the network and run this again"
}
