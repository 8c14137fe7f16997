"""The memory that is free, by files as Linux has them."""

import pytest

from tpullm.system.process.memory import free_bytes

GIB = 1 << 30
INFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n"


@pytest.fixture
def machine(tmp_path):
    """Makes a machine of files, by their paths."""

    def make(**files: str):
        for name, text in ({"proc/meminfo": INFO} | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def test_without_cgroups_it_is_what_the_system_has(machine):
    assert free_bytes(machine()) == 8 * GIB


def test_nobody_says(tmp_path):
    assert free_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slice/own\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:cpu,memory:/slice/own\n0::/\n",
            "memory/",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["second version", "first version"],
)
def test_the_least_that_any_limit_leaves(machine, line, folder, names):
    """A file that can be read again counts as free; a limit of a folder above holds too."""

    def limited(path: str, limit: str, used: int) -> dict:
        where = f"sys/fs/cgroup/{folder}{path}"
        stat = f"{names[2]} {1 * GIB}\nanon 7\n"
        return {where + names[0]: f"{limit}\n", where + names[1]: f"{used}\n", where + "memory.stat": stat}

    own = {"proc/self/cgroup": line} | limited("slice/own/", str(6 * GIB), 2 * GIB)
    assert free_bytes(machine(**own)) == 5 * GIB
    assert free_bytes(machine(**limited("slice/", str(4 * GIB), 3 * GIB))) == 2 * GIB
    assert free_bytes(machine(**limited("slice/", "max", 3 * GIB))) == 5 * GIB
    assert free_bytes(machine(**limited("slice/own/", str(99 * GIB), 2 * GIB))) == 8 * GIB


def test_a_container_that_sees_its_own_folder_alone(machine):
    files = {"proc/self/cgroup": "0::/outside/of/it\n", "sys/fs/cgroup/memory.max": f"{3 * GIB}"}
    assert free_bytes(machine(**files, **{"sys/fs/cgroup/memory.current": f"{GIB}"})) == 2 * GIB
