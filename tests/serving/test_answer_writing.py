"""What engines tell reaches those who listen, in its order."""

import asyncio
import threading

from tpullm.serving.answer_writing import Post


def test_what_is_told_arrives_in_its_order_and_much_of_it_in_one_call():
    async def heard() -> tuple[list, list, int]:
        loop, calls = asyncio.get_running_loop(), []
        soon = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: (calls.append(1), soon(*given))[1]
        post, one, other = Post(), asyncio.Queue(), asyncio.Queue()
        for first in (0, 500):  # the second time the loop has delivered all of the first
            thread = threading.Thread(
                target=lambda first=first: [post.put(queue, first, n) for n in range(500) for queue in (one, other)]
            )
            thread.start()
            thread.join()  # the loop does nothing meanwhile
            await asyncio.sleep(0)
        queues = [[await asyncio.wait_for(queue.get(), 9) for _ in range(1000)] for queue in (one, other)]
        return *queues, len(calls)

    one, other, calls = asyncio.run(heard())
    assert one == other == [(first, n) for first in (0, 500) for n in range(500)]
    assert calls == 2


def test_what_is_told_when_the_loop_is_gone_is_lost_without_a_word():
    async def made() -> tuple[Post, asyncio.Queue]:
        return Post(), asyncio.Queue()

    post, queue = asyncio.run(made())
    post.put(queue, 0, 1)
