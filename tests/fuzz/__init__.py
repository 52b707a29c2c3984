"""Fuzzing: what comes from outside either works or raises the library's own error, within bounds of time.

`targets.py` says what is fuzzed. The default tests try a few examples of each target, `make fuzz` for half an hour:
hypothesis draws new examples, then atheris steers the same strategies by the coverage of the library's code.
"""
