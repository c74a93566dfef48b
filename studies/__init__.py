"""Studies made with Steelyard: each asks a question, runs, judges claims and writes a folder under `results/`.

They stand beside the package, are not in its wheel, and nothing in it imports them. `python -m studies.NAME --help`
explains one; its README says what it asks.
"""
