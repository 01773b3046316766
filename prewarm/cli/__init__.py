"""The command line: commands and options, the console, progress, doctor.

Here arguments, environment and clock are read, connections opened, results printed.
Not here: anything that another package needs; nothing imports this one.
"""
