#!/usr/bin/env bash
# GPUDirect between Google's machines: installs Google's plugin for NCCL and prints the variables of NCCL.
#
#     bash gpudirect.sh tcpxo CARDS | rdma CARDS
#
# `startup.sh` runs it as root on a machine that has the network cards, on Ubuntu 24.04 with NVIDIA's driver. stdout has
# lines NAME=VALUE for the environment of the verb. The last line of stderr says what failed. It may run again.
# TPULLM_ROOT stands before all paths, for tests. No real machine has run it yet.
#
# Sources: GoogleCloudPlatform/cluster-toolkit, examples/machine-learning (a3high-slurm-tcpxo-blueprint.yaml,
# a4high-vm.yaml, nccl-tests); GoogleCloudPlatform/slurm-gcp, receive-data-path-manager-mega;
# GoogleCloudPlatform/container-engine-accelerators, gpudirect-tcpxo/README.md, for the versions.
set -Eeuo pipefail
umask 022 # apt's own user reads the keys

registry=us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo
plugin=$registry/nccl-plugin-gpudirecttcpx-dev:v1.0.14
daemon=$registry/tcpgpudmarxd-dev:v1.0.20 # goes with that plugin
helper=dmabuf-import-helper helper_version=1.1
root=${TPULLM_ROOT:-}
seconds=${TPULLM_GPUDIRECT_SECONDS:-120} # for the cards' addresses, and for the daemon's start

die() {
    printf '%s\n' "$1" >&2
    exit 1
}

# Adds a package repository of Google's for accelerators ($1).
add_repository() {
    local keys=$root/etc/apt/keyrings lists=$root/etc/apt/sources.list.d
    mkdir -p "$keys" "$lists"
    curl -fsS --retry 5 -o "$keys/google.asc" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    curl -fsS --retry 5 -o "$keys/artifact-registry.asc" https://us-apt.pkg.dev/doc/repo-signing-key.gpg
    echo "deb [signed-by=$keys/google.asc] http://packages.cloud.google.com/apt" \
        "apt-transport-artifact-registry-stable main" >"$lists/artifact-registry.list"
    apt-get -q update
    apt-get -qy install apt-transport-artifact-registry
    echo "deb [signed-by=$keys/artifact-registry.asc] ar+https://us-apt.pkg.dev/projects/gce-ai-infra $1 main" \
        >"$lists/$1.list"
    apt-get -q update
}

# The repository of NVIDIA's container toolkit, for Ubuntu 24.04.
add_nvidia() {
    local keyring=cuda-keyring_1.1-1_all.deb folder
    folder=$(mktemp -d)
    curl -fsS --retry 5 -o "$folder/$keyring" \
        "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/$keyring"
    dpkg -i "$folder/$keyring"
}

# The names of the machine's network interfaces but for its own one (of the default route), in the order of their slots.
card_names() {
    local own name
    own=$(ip -4 route show default | awk '{ for (i = 1; i < NF; i++) if ($i == "dev") { print $(i + 1); exit } }')
    for name in "$root"/sys/class/net/*/device; do
        [ -e "$name" ] || continue
        name=${name%/device}
        [ "${name##*/}" = "$own" ] || echo "$(basename "$(readlink -f "$name/device")") ${name##*/}"
    done | sort | cut -d ' ' -f 2
}

# Sets own and cards (comma-separated), once as many cards as $1 have addresses.
find_cards() {
    local until=$((SECONDS + seconds)) name names=()
    while :; do
        mapfile -t names < <(for name in $(card_names); do
            if [ -n "$(ip -4 -o addr show dev "$name" scope global)" ]; then echo "$name"; fi
        done)
        if [ "${#names[@]}" -eq "$1" ]; then break; fi
        [ "$SECONDS" -lt "$until" ] || die "${#names[@]} of $1 network cards have an address after $seconds seconds"
        sleep 2
    done
    own=$(ip -4 route show default | awk '{ for (i = 1; i < NF; i++) if ($i == "dev") { print $(i + 1); exit } }')
    cards=$(IFS=, && echo "${names[*]}")
}

# The kernel module by which the daemon maps the memory of a GPU.
install_helper() {
    local folder source=$root/usr/src/$helper-$helper_version
    if [ -e "$root/dev/dmabuf_import_helper" ]; then return; fi
    folder=$(mktemp -d)
    (cd "$folder" && apt-get -q download "$helper=$helper_version" && dpkg-deb -x ./*.deb .)
    rm -rf "$source"
    mkdir -p "$root/usr/src"
    cp -r "$folder/usr/src/$helper-$helper_version" "$source"
    # From Linux 6.13 on the name of a namespace is a string.
    if [ "$(printf '%s\n6.13\n' "$(uname -r)" | sort -V | head -n 1)" = 6.13 ]; then
        sed -i 's/MODULE_IMPORT_NS(DMA_BUF)/MODULE_IMPORT_NS("DMA_BUF")/' "$source/import-helper.c"
    fi
    dkms install "$helper/$helper_version"
    modprobe import-helper
}

# The cards' memory, where the plugin looks for it: the PCI devices 1ae0:0084.
bind_apertures() {
    local device place
    for device in "$root"/sys/bus/pci/devices/*; do
        if [ "$(cat "$device/vendor") $(cat "$device/device")" != "0x1ae0 0x0084" ]; then continue; fi
        place=$root/dev/aperture_devices/${device##*/}
        if [ -e "$place/vendor" ]; then continue; fi
        mkdir -p "$place"
        mount --bind "$device" "$place"
        chmod 0666 "$place"/resource*
    done
}

# The daemon that receives for the GPUs; $1 = cards.
start_daemon() {
    local until options=(--num_hops=2)
    if [ "$1" -eq 8 ]; then options+=(--num_nics=8 --uid= --alsologtostderr); fi
    docker rm --force receive-datapath-manager || true # of before a reboot
    docker run --detach --name receive-datapath-manager --network=host --privileged --cap-add=NET_ADMIN --gpus all \
        --volume /var/lib/nvidia/lib64:/usr/local/nvidia/lib64 \
        --volume /dev/dmabuf_import_helper:/dev/dmabuf_import_helper \
        --env LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu "$daemon" "${options[@]}"
    until=$((SECONDS + seconds))
    until docker logs receive-datapath-manager 2>&1 | grep "Buffer manager initialization complete" >/dev/null; do
        [ "$SECONDS" -lt "$until" ] || die "the receive-datapath-manager is not ready after $seconds seconds"
        sleep 2
    done
}

tcpxo() {
    local libraries=$root/var/lib/tcpxo/lib64 own='' cards=''
    find_cards "$1"
    add_repository gpudirect-tcpxo-apt
    add_nvidia
    apt-get -q update
    apt-get -qy install dkms "linux-headers-$(uname -r)" docker.io nvidia-container-toolkit
    nvidia-ctk runtime configure --runtime=docker
    systemctl restart docker
    install_helper
    bind_apertures
    rm -rf "$libraries"
    docker run --rm --network=host --volume /var/lib:/var/lib "$plugin" install --install-nccl
    start_daemon "$1"
    export NCCL_LIB_DIR=$libraries
    set +u
    # shellcheck source=/dev/null # the plugin's own file, which expects the interfaces eth0 to eth8
    . "$libraries/nccl-env-profile.sh"
    set -u
    export NCCL_SOCKET_IFNAME=$own NCCL_FASTRAK_CTRL_DEV=$own NCCL_FASTRAK_IFNAME=$cards
    export NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY=/dev/aperture_devices
    if [ "$1" -ne 8 ]; then # the plugin's own check is for machines with eight cards
        printf '%s_check_level: CHECK_DISABLED\n' env_var attention_keyword cpu_affinity >"$libraries/tpullm.textproto"
        export NCCL_SHIMNET_GUEST_CONFIG_CHECKER_CONFIG_FILE=$libraries/tpullm.textproto
    fi
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

rdma() {
    local found
    add_repository gpudirect-gib-apt
    apt-get -qy install rdma-core ibverbs-utils nccl-gib
    found=$(find "$root/sys/class/infiniband" -mindepth 1 2>/dev/null | wc -l)
    [ "$found" -eq "$1" ] || die "the machine has $found RDMA devices, not $1"
    set +u
    # shellcheck source=/dev/null # the plugin's own file
    . "$root/usr/local/gib/scripts/set_nccl_env.sh"
    set -u
    export LD_LIBRARY_PATH=$root/usr/local/gib/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

trap 'echo "line $LINENO of gpudirect.sh failed: $BASH_COMMAND" >&2' ERR
exec 3>&1 >&2
case "${1:-} ${2:-}" in
"tcpxo "[0-9]* | "rdma "[0-9]*) "$1" "$2" ;;
*) die "usage: gpudirect.sh tcpxo CARDS | rdma CARDS" ;;
esac
env | grep -E '^(NCCL_[A-Z0-9_]*|LD_LIBRARY_PATH)=' >&3
