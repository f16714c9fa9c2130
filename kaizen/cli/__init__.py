"""Turns a command line into one checked configuration: recipe, preset and overrides (resolve.py, shipped.py), checks
of keys that belong together (checks.py), help (help.py) and sweep files (sweep.py).

Commands and bench import it; it imports kaizen.model and the floors below.
"""
