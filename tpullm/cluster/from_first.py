"""What host 0 tells the others in its own time: they wait for it as long as nothing comes, and it waits for nobody."""

import json
from collections import deque
from typing import Any

from tpullm.cluster.channel import Channel, Message
from tpullm.cluster.connection import MOST_BYTES

_PIECE = MOST_BYTES // 8  # characters, which may become several bytes each


class FromFirst:
    """Values (JSON) of any length, in the order in which host 0 tells them.

    Args:
        name: what they are about; another one for each `FromFirst`.
        channel: to the other hosts. All hosts must have made their `FromFirst` before host 0 tells anything.
    """

    def __init__(self, name: str, channel: Channel):
        self._kind, self._channel = f"told {name}", channel
        self._pieces: list[str] = []
        self._whole: deque[str] = deque()
        channel.handlers[self._kind] = self._arrive

    def tell(self, value: Any) -> None:
        """On host 0: tell the others."""
        text = json.dumps(value)
        for start in range(0, len(text), _PIECE):
            message = {"kind": self._kind, "text": text[start : start + _PIECE], "ends": start + _PIECE >= len(text)}
            self._channel.broadcast(message)

    def next(self) -> Any:
        """On the others: the next value, as soon as it is there.

        Raises:
            HostFailed: another host failed.
        """
        self._channel.wait(lambda: self._whole)
        return json.loads(self._whole.popleft())

    def _arrive(self, sender: int, message: Message) -> None:
        if sender or not isinstance(message["text"], str):
            raise ValueError("no words of host 0")
        if self._channel.index == 0:
            return
        with self._channel.changed:
            self._pieces.append(message["text"])
            if message["ends"]:
                self._whole.append("".join(self._pieces))
                self._pieces = []
                self._channel.changed.notify_all()
