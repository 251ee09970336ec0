"""Reference numbers of every stage on the tiny model, made by `python -m tests.golden.make`."""
