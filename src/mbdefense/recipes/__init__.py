"""One file a command, read from top to bottom: the Python API, from whose signatures the command line is made.

A recipe is a function of plain values. It does a command's work from start to end, prints nothing, and returns what was
found; what a user should be warned of goes to the package's logger.
"""
