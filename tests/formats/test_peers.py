"""Which host gets a shard from which other one, and when it moves."""

from hypothesis import given
from hypothesis import strategies as st

from tpullm.formats.peers import choose, rounds

HOSTS = st.integers(0, 4)
SAVES = st.dictionaries(HOSTS, st.dictionaries(st.sampled_from("xyz"), st.sets(st.sampled_from("abcdef"))))


@given(needed=st.dictionaries(HOSTS, st.sets(st.sampled_from("abcdef"))), saves=SAVES)
def test_a_shard_comes_from_a_save_that_has_it_and_from_its_own_disk_first(needed, saves):
    sources, lacking = choose(needed, saves)
    somewhere = {name for own in saves.values() for names in own.values() for name in names}
    assert sources.keys() == {(host, name) for host, names in needed.items() for name in names & somewhere}
    assert lacking == {host for host, names in needed.items() if names - somewhere}
    for (host, name), (source, save) in sources.items():
        assert name in saves[source][save]
        assert source == host or all(name not in names for names in saves.get(host, {}).values())


def test_the_first_save_on_a_disk_is_used():
    assert choose({1: "a"}, {1: {"host-1": "a", "host-0": "a"}})[0] == {(1, "a"): (1, "host-1")}


def test_hosts_that_lack_the_same_ask_different_hosts():
    """Of two slices one is gone: each of its hosts has a host of its own to ask."""
    sources, _ = choose(dict.fromkeys(range(8), "a"), {host: {"save": "a"} for host in range(4)})
    assert sorted(source for (host, _), (source, _) in sources.items() if host >= 4) == [0, 1, 2, 3]


DEVICES = {host: [10 * host, 10 * host + 1, 10 * host + 2] for host in range(5)}
TRANSFER = st.tuples(st.sampled_from("abcdef"), HOSTS, st.sampled_from(sum(DEVICES.values(), [])))


@given(st.lists(TRANSFER, unique_by=lambda transfer: (transfer[0], transfer[2])))
def test_every_shard_moves_once_and_a_device_sends_and_receives_one_at_a_time(transfers):
    made = rounds(transfers, DEVICES)
    moved = [(name, sender // 10, target) for one in made for (sender, target), name in one.items()]
    assert sorted(moved) == sorted(transfers)
    for one in made:
        senders, targets = zip(*one, strict=True)
        assert len(set(senders)) == len(senders) and len(set(targets)) == len(targets)


def test_all_devices_of_a_host_that_lost_its_disk_receive_at_once():
    transfers = [(str(device), host - 2, device) for host in (2, 3) for device in DEVICES[host]]
    assert len(rounds(transfers, DEVICES)) == 1
    assert len(rounds([(name, 0, target) for name, _, target in transfers], DEVICES)) == 2
