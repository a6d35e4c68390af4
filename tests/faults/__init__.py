"""Faults at random moments of every command that writes, and what is left of its work afterwards.

``python -m tests.faults --kills 200`` repeats them and prints a table; ``python -m tests.faults.load`` trains for long.
"""
