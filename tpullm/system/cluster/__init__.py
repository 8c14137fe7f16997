"""How several processes, the hosts, train one model together.

    place.py      which host this process is: flags, TPU metadata, Google Batch, Slurm
    handshake.py  how the hosts meet at host 0, and prove to each other that they have one secret
    channel.py    the connection of each host to host 0: messages, heartbeats, which host failed
    hosts.py      join, start JAX, gather, barrier, on_first, broadcast, agree, fail, leave
    requests.py   stop or save after the same step on all hosts
    watchdog.py   which host hangs or is slow

A command ends with `hosts.leave`, or with `hosts.fail`, which ends all other hosts with its exit code and its line.
"""
