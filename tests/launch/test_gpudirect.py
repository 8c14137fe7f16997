"""The set-up of GPUDirect: its commands and NCCL's variables. A machine is a folder with stand-ins for tools."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "tpullm" / "launch" / "gpudirect.sh"
# Stand-ins, as the tools behave: what they print, and what they leave on the machine.
TOOLS = {
    "curl": 'while [ "$1" != -o ]; do shift; done; echo key >"$2"',
    "dkms": "",
    "modprobe": "",
    "mount": 'cp -r "$2"/. "$3"',  # --bind
    "systemctl": "",
    "nvidia-ctk": "",
    "dpkg": "",
    "dpkg-deb": 'mkdir -p "$3/usr/src/dmabuf-import-helper-1.1" && '
    'echo "MODULE_IMPORT_NS(DMA_BUF)" >"$3/usr/src/dmabuf-import-helper-1.1/import-helper.c"',
    "apt-get": 'if [ "$2" = download ]; then touch dmabuf-import-helper_1.1_all.deb; fi\n'
    'case "$*" in *"${BROKEN:-nothing}"*) echo "E: Unable to locate package" >&2; exit 100 ;; esac',
    "docker": 'case "$*" in\n'
    '*" install --install-nccl") mkdir -p "$TPULLM_ROOT/var/lib/tcpxo/lib64" &&\n'
    '    printf "export NCCL_PROTO=Simple NCCL_SOCKET_IFNAME=eth0 NCCL_LIB=\\$NCCL_LIB_DIR\\n" '
    '>"$TPULLM_ROOT/var/lib/tcpxo/lib64/nccl-env-profile.sh" ;;\n'
    'logs*) [ -n "${DAEMON_FAILS:-}" ] || echo "I0000 Buffer manager initialization complete" ;;\n'
    "rm*) exit 1 ;;\n"  # there is no such container
    "esac",
    "ip": 'case "$*" in\n'
    '*route*) echo "default via 10.128.0.1 dev enp0s12 proto dhcp src 10.128.0.2 metric 100" ;;\n'
    '*) case "$6" in ${DOWN:-none}) ;; *) echo "2: $6 inet 192.168.0.2/32 scope global $6" ;; esac ;;\n'
    "esac",
    "uname": "echo ${KERNEL:-6.17.0-1012-gcp}",
}
# Of A3 Mega, by their slots: a name may sort before that of an earlier slot.
MEGA = {f"enp{slot}s0": f"0000:{slot:02x}:00.0" for slot in (6, 7, 13, 14, 134, 135, 141, 142)}
HIGH = {f"enp{slot}s0f0": f"0000:{slot:02x}:00.0" for slot in (6, 12, 134, 140)}


class Machine:
    def __init__(self, folder: Path, cards: dict[str, str]):
        self.root, self._tools, self._calls = folder / "root", folder / "tools", folder / "calls"
        self._tools.mkdir()
        for name, text in TOOLS.items():
            program = self._tools / name
            program.write_text(f'#!/bin/bash\necho "{name} $*" >>{self._calls}\n{text}\n')
            program.chmod(0o755)
        for name, slot in ({"enp0s12": "0000:00:0c.0"} | cards).items():
            device = self.root / "sys/bus/pci/devices" / slot
            self._device(device, "0x1ae0", "0x0042")
            (self.root / "sys/class/net" / name).mkdir(parents=True)
            (self.root / "sys/class/net" / name / "device").symlink_to(device)
        (self.root / "sys/class/net/lo").mkdir()

    @staticmethod
    def _device(folder: Path, vendor: str, device: str) -> None:
        folder.mkdir(parents=True)
        for name, text in {"vendor": vendor, "device": device, "resource0": ""}.items():
            (folder / name).write_text(f"{text}\n")
        (folder / "resource0").chmod(0o600)

    def add_aperture(self, slot: str) -> None:
        self._device(self.root / "sys/bus/pci/devices" / slot, "0x1ae0", "0x0084")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        own = {"PATH": f"{self._tools}:{os.environ['PATH']}", "TPULLM_ROOT": str(self.root)}
        own |= {"TPULLM_GPUDIRECT_SECONDS": "0", "HOME": "/nonexistent"} | variables
        return subprocess.run(["bash", SCRIPT, *arguments], env=own, capture_output=True, text=True)

    def calls(self, tool: str) -> list[str]:
        lines = self._calls.read_text().splitlines()
        return [line.removeprefix(f"{tool} ") for line in lines if line.startswith(f"{tool} ")]


def variables(done: subprocess.CompletedProcess) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("cards", [MEGA, HIGH], ids=["mega", "high"])
def test_tcpxo(tmp_path, cards):
    machine = Machine(tmp_path, cards)
    machine.add_aperture("0000:08:00.0")
    found, libraries = variables(machine.run("tcpxo", str(len(cards)))), f"{machine.root}/var/lib/tcpxo/lib64"
    assert found["NCCL_FASTRAK_IFNAME"] == ",".join(cards), "in the order of the slots"
    assert found["NCCL_SOCKET_IFNAME"] == found["NCCL_FASTRAK_CTRL_DEV"] == "enp0s12", "not the plugin's eth0"
    assert found["NCCL_PROTO"] == "Simple" and found["NCCL_LIB"] == libraries, "as the plugin's own file says"
    assert found["LD_LIBRARY_PATH"] == libraries
    assert ("NCCL_SHIMNET_GUEST_CONFIG_CHECKER_CONFIG_FILE" in found) is (cards is HIGH)
    assert machine.calls("dkms") == ["install dmabuf-import-helper/1.1"]
    assert machine.calls("modprobe") == ["import-helper"]
    *_, started, _ = machine.calls("docker")
    assert started.startswith("run --detach") and "--privileged" in started and "--gpus all" in started
    options = started.rpartition("tcpgpudmarxd-dev:v1.0.20")[2]
    assert options == " --num_hops=2" + (" --num_nics=8 --uid= --alsologtostderr" if cards is MEGA else "")
    aperture = machine.root / "dev/aperture_devices/0000:08:00.0"
    assert (aperture / "resource0").stat().st_mode & 0o777 == 0o666
    assert [path.name for path in aperture.parent.iterdir()] == ["0000:08:00.0"], "other devices are none"


@pytest.mark.parametrize("kernel, name", [("6.8.0-1030-gcp", "DMA_BUF"), ("6.13.0", '"DMA_BUF"')])
def test_the_kernel_module_is_as_the_kernel_wants_it(tmp_path, kernel, name):
    machine = Machine(tmp_path, MEGA)
    variables(machine.run("tcpxo", "8", KERNEL=kernel))
    source = machine.root / "usr/src/dmabuf-import-helper-1.1/import-helper.c"
    assert source.read_text() == f"MODULE_IMPORT_NS({name})\n"
    assert f"linux-headers-{kernel}" in " ".join(machine.calls("apt-get"))


def test_tcpxo_again_after_a_reboot(tmp_path):
    machine = Machine(tmp_path, MEGA)
    machine.add_aperture("0000:08:00.0")
    first = variables(machine.run("tcpxo", "8"))
    (machine.root / "dev/dmabuf_import_helper").touch()
    assert variables(machine.run("tcpxo", "8")) == first
    assert len(machine.calls("dkms")) == 1 and len(machine.calls("mount")) == 1


def test_rdma(tmp_path):
    machine = Machine(tmp_path, {})
    scripts = machine.root / "usr/local/gib/scripts"
    scripts.mkdir(parents=True)
    (scripts / "set_nccl_env.sh").write_text('export NCCL_NET=gIB NCCL_IB_TC=52 OTHER=1 UNSET="$NOT_SET"\n')
    for number in range(8):
        (machine.root / "sys/class/infiniband" / f"rocep{number}s0").mkdir(parents=True)
    library = f"{machine.root}/usr/local/gib/lib64"
    found = variables(machine.run("rdma", "8", LD_LIBRARY_PATH="/mine"))
    assert found == {"NCCL_NET": "gIB", "NCCL_IB_TC": "52", "LD_LIBRARY_PATH": f"{library}:/mine"}
    assert "-qy install rdma-core ibverbs-utils nccl-gib" in machine.calls("apt-get")
    assert machine.run("rdma", "9").stderr.splitlines()[-1] == "the machine has 8 RDMA devices, not 9"


@pytest.mark.parametrize(
    "broken, says",
    [
        ({"DOWN": "enp134s0"}, "7 of 8 network cards have an address after 0 seconds"),
        ({"DAEMON_FAILS": "1"}, "the receive-datapath-manager is not ready after 0 seconds"),
        ({"BROKEN": "docker.io"}, "apt-get -qy install dkms"),
        ({"BROKEN": "download"}, "apt-get -q download"),
    ],
)
def test_the_last_line_says_what_failed(tmp_path, broken, says):
    done = Machine(tmp_path, MEGA).run("tcpxo", "8", **broken)
    assert done.returncode != 0 and done.stdout == "" and says in done.stderr.splitlines()[-1], done.stderr
