#!/bin/sh
# The start-up script of a machine: it sets up the environment, runs tpullm.launch.supervisor, and ends the machine.
#
# It needs a POSIX shell, curl and python3. It may run again at any time (when a machine reboots), and then keeps what is
# complete. The metadata of the machine tells it tpullm-job, tpullm-attempt, tpullm-wheel and its tpullm-sha256,
# tpullm-extras, tpullm-python (a Python with all dependencies; without it, pip sets one up) and tpullm-seconds (how long
# the machine may run). It writes a failure to the run directory, where `tpullm launch --watch` finds it. However it ends,
# the machine is switched off: nobody may be there to remove it. In a pod (TPULLM_POD is set) it runs tpullm.launch.pod
# and ends with its exit code.
set -eu

home=${TPULLM_HOME:-/var/lib/tpullm}
metadata=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1
storage=${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}

say() { printf 'startup.sh: %s\n' "$1" >&2; }

metadata_value() { curl -fsS --retry 8 --retry-connrefused -H 'Metadata-Flavor: Google' "$metadata/instance/$1"; }

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
    name=$(python3 -c 'import os, sys, urllib.parse; print(urllib.parse.quote(os.fsencode(sys.argv[1]), safe=""))' \
        "${bucket#*/}")
    bucket=${bucket%%/*}
}

download() { # $1 = from gs://, $2 = to
    split "$1"
    authorization | curl -fsS --retry 5 --config - -o "$2" "$storage/storage/v1/b/$bucket/o/$name?alt=media"
}

# Whether a file ($1) is the wheel that was launched.
is_wheel() { [ -e "$1" ] && [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$sha256" ]; }

# Gets the wheel, unless it is here. It has its name only once its hash is right: a broken file is never kept.
fetch_wheel() {
    if is_wheel "$file"; then return; fi
    for _ in 1 2 3; do
        download "$wheel" "$file.partial" || die "$wheel can't be fetched"
        if is_wheel "$file.partial"; then mv "$file.partial" "$file" && return; fi
    done
    rm -f "$file.partial"
    die "$wheel is not the code that was launched (its SHA-256 differs); remove it and launch again"
}

# Whether this is a pod of a JobSet: that sees the exit code, and ends the pod itself.
in_pod() { [ -n "${TPULLM_POD:-}" ]; }

# Ends this script with a reason ($1), which is reported.
die() {
    say "$1"
    reason=$1
    exit 1
}

# Reports that this machine failed ($1 = exit code, $2 = reason).
# shellcheck disable=SC2329 # the trap of `finish` calls both
report() {
    folder=${job%/jobs/*}/attempts/$(printf '%04d' "$attempt")
    split "$folder/ended/setup-$(hostname).json"
    authorization >"$home/authorization"
    python3 -c 'import json, sys
host, code, line = sys.argv[1:]
print(json.dumps({"host": int(host or 0), "code": int(code), "line": line}))' \
        "${BATCH_TASK_INDEX:-$(attribute agent-worker-number)}" "$1" "set-up on $(hostname): $2" |
        curl -fsS --retry 8 --config "$home/authorization" -H 'Content-Type: application/json' --data-binary @- \
            -o /dev/null "$storage/upload/storage/v1/b/$bucket/o?uploadType=media&name=$name" && sent=yes || sent=
    rm -f "$home/authorization"
    [ -n "$sent" ]
}

# Switches this machine off ($1 = now, or in +MINUTES; the last call counts). Batch ends its machines itself. Where
# another metadata server is named, this is somebody's computer with a test.
power_off() {
    if [ -n "${BATCH_TASK_INDEX:-}" ]; then return; fi
    if [ -n "${GCE_METADATA_HOST:-}" ] && [ -z "${TPULLM_POWER_OFF:-}" ]; then return; fi
    "${TPULLM_POWER_OFF:-shutdown}" -h "$1" >&2 || say "shutdown -h $1 failed"
}

# The end of this script, whatever ends it. A report that can't be written may be for want of a role: then the machine
# stays for an hour, after which `tpullm launch --watch` asks for that role.
# shellcheck disable=SC2329
finish() {
    code=$?
    trap - EXIT
    if in_pod; then
        if [ -n "$interrupted" ]; then exit 75; else exit "$code"; fi
    fi
    if [ -e "$home/reported" ]; then
        power_off now
    elif [ -n "$interrupted" ]; then
        code=75 # as of a verb whose peer is gone: Batch starts the task again, or another attempt resumes
        [ -n "${BATCH_TASK_INDEX:-}" ] || report 75 "the machine was stopped" || true
        power_off now
    elif report "$((code ? code : 1))" "${reason:-exit code $code; its serial console has more}"; then
        power_off now
    else
        power_off +70
    fi
    exit "$code"
}

# The time since the machine booted, in seconds: clocks may jump.
uptime() { cut -d . -f 1 /proc/uptime; }

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
    python3 -m zipfile -e "$file" "$home/unpacked"
    constraints=
    if [ -e "$home/unpacked/tpullm/constraints.txt" ]; then constraints="-c $home/unpacked/tpullm/constraints.txt"; fi
    for again in 10 30 0; do
        # shellcheck disable=SC2086 # without the file there is no option
        if "$python" -m pip install --quiet --no-input --disable-pip-version-check $constraints \
            "${file}[$extras]" 2>"$home/pip.log"; then
            touch "$environment/whole"
            return
        fi
        say "pip failed: $(tail -n 1 "$home/pip.log")"
        sleep "$again"
    done
    die "pip failed: $(tail -n 1 "$home/pip.log")"
}

umask 077
job=$(setting tpullm-job)
attempt=$(setting tpullm-attempt)
[ -n "$job" ] || { say "tpullm-job: is not in the metadata of this machine" && exit 1; }

reason='' interrupted=''
trap finish EXIT
trap 'interrupted=yes; exit 143' TERM
mkdir -p "$home"
rm -f "$home/reported"
seconds=$(setting tpullm-seconds)
[ -e "$home/began" ] || { date +%s >"$home/began.partial" && mv "$home/began.partial" "$home/began"; }
left=$(($(cat "$home/began") + seconds - $(date +%s))) # after a reboot, less than at first, but enough for a report
if [ "$left" -gt "$seconds" ]; then left=$seconds; elif [ "$left" -lt 300 ]; then left=300; fi
started=$(uptime)
in_pod || power_off "+$(((left + 59) / 60))"

wheel=$(setting tpullm-wheel)
sha256=$(setting tpullm-sha256)
extras=$(setting tpullm-extras)
python=$(setting tpullm-python)
file=$home/$(basename "$wheel")
fetch_wheel
if [ -n "$python" ]; then
    "$python" -c '' || die "$python: does not run"
    rm -rf "$home/code"
    "$python" -m zipfile -e "$file" "$home/code"
    PYTHONPATH=$home/code
    export PYTHONPATH
else
    make_environment
fi
"$python" -c 'import tpullm.launch.supervisor' 2>"$home/import.log" || die "$(tail -n 1 "$home/import.log")"

if in_pod; then
    trap - EXIT TERM
    exec "$python" -m tpullm.launch.pod --job "$job"
fi

"$python" -m tpullm.launch.supervisor --job "$job" --attempt "$attempt" \
    --seconds "$((left - $(uptime) + started))" --reported "$home/reported" &
supervisor=$!
trap 'interrupted=yes; kill -TERM "$supervisor" || true' TERM
code=0
wait "$supervisor" || code=$?
while [ -n "$interrupted" ]; do # a signal ended the waiting, not the supervisor
    interrupted=
    again=0
    wait "$supervisor" || again=$?
    if [ "$again" = 127 ]; then break; fi # it had ended
    code=$again
done
if [ "$code" = 143 ]; then interrupted=yes; fi # it was stopped before it could hear a signal
exit "$code"
