#!/bin/sh
# The start-up script of a machine: it sets up the environment, then executes tpullm.launchers.supervisor.
#
# It needs a POSIX shell, curl and python3. It may run again at any time (when a machine reboots), and then keeps what is
# complete. The metadata of the machine tells it tpullm-job, tpullm-attempt, tpullm-wheel, tpullm-extras and
# tpullm-python (a Python with all dependencies; without it, pip sets one up). It writes a failure to the run directory,
# where `tpullm launch --watch` finds it.
set -eu

home=${TPULLM_HOME:-/var/lib/tpullm}
metadata=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1
storage=${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}

say() { printf 'startup.sh: %s\n' "$1" >&2; }

metadata_value() { curl -fsS --retry 5 --retry-connrefused -H 'Metadata-Flavor: Google' "$metadata/instance/$1"; }

attribute() { metadata_value "attributes/$1" 2>/dev/null || true; }

# $1 = what to know, such as tpullm-job: a variable in a task of Google Batch (TPULLM_JOB), else a metadata attribute.
setting() {
    variable=$(printf '%s' "$1" | tr 'a-z-' 'A-Z_')
    eval "value=\${$variable:-}"
    if [ -n "$value" ]; then printf '%s' "$value"; else attribute "$1"; fi
}

# The authorization header, in the form of curl --config, for its stdin: other users could read a command line.
authorization() {
    metadata_value service-accounts/default/token |
        python3 -c 'import json, sys; print("header = \"Authorization: Bearer %s\"" % json.load(sys.stdin)["access_token"])'
}

# $1 = gs://BUCKET/NAME; sets bucket and name. The name is percent-encoded for a URL.
split() {
    bucket=${1#gs://}
    name=$(printf '%s' "${bucket#*/}" | sed 's|/|%2F|g; s|+|%2B|g')
    bucket=${bucket%%/*}
}

download() { # $1 = from gs://, $2 = to
    split "$1"
    authorization | curl -fsS --retry 5 --config - -o "$2.partial" "$storage/storage/v1/b/$bucket/o/$name?alt=media" &&
        mv "$2.partial" "$2"
}

# Reports that the set-up of this machine failed ($1), and exits.
die() {
    say "$1"
    folder=${job%/jobs/*}/attempts/$(printf '%04d' "$attempt")
    split "$folder/ended/setup-$(hostname).json"
    authorization >"$home/authorization"
    python3 -c 'import json, sys; print(json.dumps({"host": int(sys.argv[1] or 0), "code": 1, "line": sys.argv[2]}))' \
        "${BATCH_TASK_INDEX:-$(attribute agent-worker-number)}" "set-up on $(hostname): $1" |
        curl -fsS --retry 5 --config "$home/authorization" -H 'Content-Type: application/json' --data-binary @- \
            -o /dev/null "$storage/upload/storage/v1/b/$bucket/o?uploadType=media&name=$name" || true
    rm -f "$home/authorization"
    exit 1
}

usable_python() {
    for version in 3.13 3.12 3.11; do
        if "python$version" -c 'import ensurepip, venv' 2>/dev/null; then
            command -v "python$version"
            return
        fi
    done
    return 1
}

# Prints a Python from 3.11 to 3.13 that can make a virtual environment. That of Debian and Ubuntu lacks a package for
# it; the images of TPU machines may have only an older one.
find_python() {
    if usable_python; then return; fi
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        { apt-get -q update && apt-get -qy install python3-venv python3-pip; } >&2 && if usable_python; then return; fi
    fi
    python3 -m pip install --quiet --target "$home/uv" uv >&2 && "$home/uv/bin/uv" python install --quiet 3.13 >&2 &&
        "$home/uv/bin/uv" python find 3.13
}

# Sets python: that of a virtual environment with this wheel and its dependencies.
make_environment() {
    environment=$home/environment-$(basename "$wheel" .whl)
    python=$environment/bin/python
    if [ -e "$environment/whole" ]; then return; fi
    found=$(find_python) || die "no Python from 3.11 to 3.13, and none could be installed"
    rm -rf "$environment"
    "$found" -m venv "$environment" || die "$found could not make an environment"
    python3 -m zipfile -e "$home/$(basename "$wheel")" "$home/unpacked"
    constraints=
    if [ -e "$home/unpacked/tpullm/constraints.txt" ]; then constraints="-c $home/unpacked/tpullm/constraints.txt"; fi
    for again in 10 30 0; do
        # shellcheck disable=SC2086 # without the file there is no option
        if "$python" -m pip install --quiet --no-input --disable-pip-version-check $constraints \
            "$home/$(basename "$wheel")[$extras]" 2>"$home/pip.log"; then
            touch "$environment/whole"
            return
        fi
        say "pip failed: $(tail -n 1 "$home/pip.log")"
        sleep "$again"
    done
    die "pip failed: $(tail -n 1 "$home/pip.log")"
}

umask 077
mkdir -p "$home"
job=$(setting tpullm-job)
attempt=$(setting tpullm-attempt)
wheel=$(setting tpullm-wheel)
extras=$(setting tpullm-extras)
python=$(setting tpullm-python)
[ -n "$job" ] || { say "tpullm-job: is not in the metadata of this machine" && exit 1; }

[ -e "$home/$(basename "$wheel")" ] || download "$wheel" "$home/$(basename "$wheel")" || die "$wheel can't be fetched"
if [ -n "$python" ]; then
    "$python" -c '' || die "$python: does not run"
    rm -rf "$home/code"
    "$python" -m zipfile -e "$home/$(basename "$wheel")" "$home/code"
    PYTHONPATH=$home/code
    export PYTHONPATH
else
    make_environment
fi
exec "$python" -m tpullm.launchers.supervisor --job "$job" --attempt "$attempt" --place "$(setting tpullm-place)"
