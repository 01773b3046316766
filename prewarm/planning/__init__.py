"""Decisions without effects: demand, ranking, the plan, retention, the forecast, the schedule.

Everything that a decision needs is an argument, the time too; what it returns is a value.
Not here: files, the network, SQL, child processes, or a module that loads one of them.
"""
