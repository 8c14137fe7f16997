"""How several processes do one command: place -> join -> talk -> end.

Hosts train one model together and exchange messages. Shares of `collect` and `tokenize` work alone and meet in files.

    place.py      which host or share this process is: flags, TPU metadata (metadata.py), Google Batch, Slurm
    join.py       connect to host 0 (handshake.py, secret.py), compare the code, start JAX through a relay (relay.py)
    channel.py    the connection of each host to host 0 (connection.py): messages, heartbeats, which host failed
    hosts.py      gather, barrier, on_first, broadcast, agree: over the channel, one host at once
    requests.py   stop or save after the same step on all hosts
    watchdog.py   which host hangs or is slow
    shares.py     the finished parts and the notes of the shares of one verb
    lock.py       one command at a time in a run directory

A command ends with `join.leave`, or with `hosts.fail`, which ends all other hosts with its exit code and its line.
"""
