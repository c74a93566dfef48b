"""Side-by-side measurements against peers; each module is one command, ``python -m benchmarks.NAME``."""
