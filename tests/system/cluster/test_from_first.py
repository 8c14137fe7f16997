"""What host 0 tells the others arrives whole, in its order, and only from host 0."""

import threading

import pytest

from tests.system.cluster.channels import connect
from tpullm.system.cluster import hosts
from tpullm.system.cluster.channel import MOST_BYTES
from tpullm.system.cluster.hosts import FromFirst
from tpullm.system.errors import HostFailed

pytestmark = pytest.mark.usefixtures("ended")


@pytest.fixture
def told():
    """The same words on three hosts."""
    channels = connect(3)
    made = [FromFirst("words", channel) for channel in channels]
    for channel in channels:
        channel.start()
    return channels, made


def test_each_host_hears_all_in_order(told):
    _, (first, *others) = told
    values = [[], {"a": "猫" * MOST_BYTES}, None, "\n", [1, {"b": [2.5]}]]
    for value in values:
        first.tell(value)
    assert [[other.next() for _ in values] for other in others] == [values, values]


def test_another_host_may_not_tell(told):
    channels, (_, other, _) = told
    channels[1].send(0, {"kind": "told words", "text": "1", "ends": True})
    with pytest.raises(HostFailed, match="host 1 .*a message that can't be used"):
        other.next()


def test_who_waits_hears_of_a_host_that_failed(told):
    channels, (_, _, last) = told
    channels[1].fail("the disk is full", 2)
    with pytest.raises(HostFailed, match="host 1 .*the disk is full"):
        last.next()


def test_who_waits_for_its_own_event_hears_of_it_too(told, monkeypatch):
    channels, _ = told
    event = threading.Event()
    monkeypatch.setattr(hosts, "_channel", channels[0])
    channels[1].fail("the disk is full", 2)
    with pytest.raises(HostFailed, match="host 1 .*the disk is full"):
        hosts.wait_for(event)
    event.set()
    hosts.wait_for(event)
