"""The engine: resolve, inspect, plan, fetch, copy, verify, record; and prune, which removes.

Here live the steps that spend pulls and write to mirrors, in the order that keeps the budget.
Not here: decisions that need no effects (`planning`), printing, and the loop of the daemon.
"""
