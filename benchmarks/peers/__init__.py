"""What users would pick instead of kdalign: a module each, run by the Python of the peer's own environment.

A module takes a job in JSON as its one argument and prints what it measured as its last line, in JSON.
"""
