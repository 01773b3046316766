"""`prewarm run`: the loop, systemd's notifications, the metrics server, and what follows a sync.

Here lives what runs between syncs and after them.
Not here: the steps of a sync, and command line options.
"""
