"""The private server of a project: a real Valkey, started on first use, shared by its processes, kept between runs.

Files in the directory (mode 0700):

    keeper.lock     exclusive flock: the one keeper
    users.lock      shared flock: one per user; exclusive: the keeper, while it stops the server
    server.lock     exclusive flock, inherited by the server: held as long as any of its processes lives
    unclean         there from before the server starts until after it stopped cleanly
    state.json      `State`, replaced atomically
    keeper.log      what the keeper did, and what the server printed before its log was open
    server.log      the server's own log
    server.sock     the socket (elsewhere if this path would be too long; `State.socket` says where)
    appendonlydir/  the data
    cut-*           what a repair took off the end of the data, kept for inspection

Beside it, a Cluster (`cluster.py`) or a Sentinel set-up (`sentinel.py`) of several servers, each a `fleet.Fleet`: it lives
as long as the program that started it. Its files are listed in `home.py` and `node.py`.
"""
