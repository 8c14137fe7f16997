#!/usr/bin/env bash
# Makes .venv in the project's folder, installs tpullm into it, and runs a command there.
#
#     launch/local.sh                              set up only
#     launch/local.sh tpullm run quickstart        set up, then run
#     launch/local.sh --extra test pytest          the same with an extra of pyproject.toml (test, tpu, cuda)
#     launch/local.sh --extra gpu-plan tpullm ...  with the compiler for GPUs (tpullm/planning/program.py), on Linux on x86
#
# TPULLM_PYTHON=python3.11 chooses the Python; without it, it is the first of 3.13, 3.12, 3.11 and 3.14 that can make a
# virtual environment: every package exists for 3.14, but the tests were not run with it. A later run finds the stamps
# of an earlier one and starts at once; what an interrupted run left is made anew. Its own messages go to stderr, so that
# the command's stdout stays clean. Exit code 2: set-up failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
needed_kib=$((2 * 1024 * 1024)) # measured: 1.4 GiB installed, 0.5 GiB of packages on their way

say() { printf 'local.sh: %s\n' "$1" >&2; }
die() { say "$1" && exit 2; }

# Prints the interpreter to build on. A name on PATH proves nothing (pyenv has shims for versions that are not there,
# Debian's Python may lack ensurepip), so each is run; in somebody's virtual environment, it names the one beneath.
find_python() {
    local version folder lacking="" probe='import ensurepip, sys, venv
assert "%d.%d" % sys.version_info[:2] in sys.argv[1:]
print(sys._base_executable)'
    if [ -n "${TPULLM_PYTHON:-}" ]; then
        "$TPULLM_PYTHON" -c "$probe" 3.13 3.12 3.11 3.14 2>/dev/null && return
        die "TPULLM_PYTHON=$TPULLM_PYTHON is not a Python 3.11 to 3.14 that can make a virtual environment"
    fi
    local IFS=:
    for version in 3.13 3.12 3.11 3.14; do # the tested ones first
        for folder in $PATH /usr/local/bin /usr/bin; do
            [ -x "$folder/python$version" ] || continue
            "$folder/python$version" -c "$probe" "$version" 2>/dev/null && return
            lacking=${lacking:-python$version-venv} # by its version: python3 may be another one, as on Colab
        done
    done
    die "no Python 3.11 to 3.14 that can make a virtual environment; install one (Debian, Ubuntu: python3 and \
${lacking:-python3-venv}) or name it with TPULLM_PYTHON"
}

# Whether .venv is whole, was made in this folder (its scripts name it) and has the Python that was asked for.
is_whole() {
    [ "$(cat "$venv/whole" 2>/dev/null)" = "$root" ] && "$venv/bin/python" -V >/dev/null 2>&1 || return 1
    [ -z "${TPULLM_PYTHON:-}" ] || [ "$("$venv/bin/python" -V)" = "$("$TPULLM_PYTHON" -V 2>&1)" ]
}

fingerprint() { cat "$root/pyproject.toml" "$root/constraints.txt" | cksum; }

# Whether everything asked for was installed from these very pyproject.toml and constraints.txt.
is_ready() {
    local part
    is_whole || return 1
    for part in runtime $extras; do
        [ "$(cat "$venv/stamp-$part" 2>/dev/null)" = "$(fingerprint)" ] || return 1
    done
}

make_environment() {
    local python free_kib
    python=$(find_python)
    free_kib=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -ge "$needed_kib" ] ||
        die "no space left: the environment needs $((needed_kib / 1024)) MiB in $root, which has $((free_kib / 1024))"
    say "setting up $venv with $python (once; about 1.4 GiB)"
    rm -rf "$venv"
    "$python" -m venv "$venv" >/dev/null || die "$python could not make a virtual environment in $venv"
}

# On a terminal, one line of stderr that is written over.
progress() { [ ! -t 2 ] || printf '\r\033[K%s' "$1" >&2; }

# Copies pip's output to stdout and shows where it is. Until pip starts to install, it has changed nothing.
follow() {
    local line doing package
    while IFS= read -r line; do
        printf '%s\n' "$line"
        read -r doing package _ <<<"$line"
        case $doing in
        Collecting) progress "local.sh: $SECONDS s: fetching ${package%%[<>=~!;]*}" ;;
        Installing) progress "local.sh: $SECONDS s: installing" && rm -f "$venv/whole" ;;
        esac
    done
    progress ""
}

why_pip_failed() {
    case $1 in
    *"No space left"*) echo "no space left on the device" ;;
    *"Retrying ("*) echo "the package index cannot be reached; is there a network?" ;;
    *) grep -i error <<<"$1" | tail -n 1 || echo "pip stopped" ;;
    esac
}

pip_install() {
    local output
    output=$("$venv/bin/python" -m pip install --no-compile --no-input --disable-pip-version-check \
        -c "$root/constraints.txt" "$@" 2>&1 | follow) || {
        { printf '%s\n' "$output" >"$venv/pip.log"; } 2>/dev/null || true
        die "installation failed: $(why_pip_failed "$output") (pip's output: $venv/pip.log)"
    }
}

# Byte code is compiled after pip, on all cores: 17 + 7 s on two, where pip alone, compiling as it installs, took 27.
# The compiler for GPUs is no extra and apart from all others, where a plain `import jax` does not find it.
install() {
    local part names=""
    for part in $extras; do [ "$part" = gpu-plan ] || names="$names,$part"; done
    pip_install -e "$root${names:+[${names#,}]}"
    [[ " $extras " != *" gpu-plan "* ]] || pip_install --upgrade --target "$venv/gpu-plan" \
        "jax-cuda13-plugin ; platform_machine == 'x86_64' and sys_platform == 'linux'"
    # Some packages ship files of other Python versions, which do not compile.
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
    for part in runtime $extras; do fingerprint >"$venv/stamp-$part"; done
    printf '%s' "$root" >"$venv/whole"
}

set_up() {
    exec 9<"${BASH_SOURCE[0]}" # held while setting up: two runs at once must not install into one environment
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready; then
        is_whole || make_environment
        install
        say "$venv has $("$venv/bin/python" -V), tpullm${extras:+ and${extras}}: ${SECONDS} s"
    fi
    exec 9<&-
}

extras=""
while [ "${1:-}" = --extra ]; do
    [ -n "${2:-}" ] || die "--extra needs the name of an extra of pyproject.toml (test, tpu, cuda), or gpu-plan"
    extras="$extras $2"
    shift 2
done
is_ready || set_up
if [ $# -gt 0 ]; then
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
    exec "$@"
fi
