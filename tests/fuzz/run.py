"""Fuzz the readers of other people's files for longer: ``python -m tests.fuzz.run --seconds 60 [TARGET ...]``.

Coverage-guided by Atheris where it is installed (``pip install 'steelyard[fuzz]'``), by seeded mutations otherwise (or
with --plain). Prints a line of figures for each target; bytes that end in an error that is not ours are written to
--findings.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.mutate import mutated


def plain(name: str, seconds: float, seed: int, findings: Path) -> dict[str, object]:
    """Run mutations of the target's seed, and of what was found on the way, for so many seconds."""
    from tests.fuzz.targets import SEEDS, TARGETS

    draw, tried, found = random.Random(seed), 0, set()
    with tempfile.TemporaryDirectory() as folder:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data, tried = mutated(SEEDS[name], draw), tried + 1
            try:
                TARGETS[name](data, Path(folder))
            except Exception as error:  # noqa: BLE001 (any that gets here is a finding)
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                if what not in found:
                    found.add(what)
                    findings.mkdir(parents=True, exist_ok=True)
                    (findings / f"{name}-{len(found)}").write_bytes(data)
    return {"target": name, "engine": "mutations", "inputs": tried, "findings": sorted(found)}


def guided(name: str, seconds: float, seed: int, findings: Path) -> None:
    """Run Atheris on one target in this process, which it ends; it prints its own figures."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["steelyard"]):
        targets = importlib.import_module("tests.fuzz.targets")
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    findings.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(targets.SEEDS[name])
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-max_len=4096", "-print_final_stats=1"]
    prefix = f"-artifact_prefix={findings}/{name}-"
    atheris.Setup([sys.argv[0], *options, prefix, str(corpus)], lambda data: targets.TARGETS[name](data, folder))
    atheris.Fuzz()


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="no Atheris, also where it is installed")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    chosen = parser.parse_args()
    names = chosen.targets or list(importlib.import_module("tests.fuzz.targets").TARGETS)
    if chosen.plain or importlib.util.find_spec("atheris") is None:
        for name in names:
            print(json.dumps(plain(name, chosen.seconds, chosen.seed, chosen.findings)), flush=True)
    elif len(names) == 1:
        guided(names[0], chosen.seconds, chosen.seed, chosen.findings)
    else:  # Atheris ends its process: one for each target
        same = ["--seconds", str(chosen.seconds), "--seed", str(chosen.seed), "--findings", str(chosen.findings)]
        for name in names:
            print(f"== {name}", flush=True)
            os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.fuzz.run", name, *same])


if __name__ == "__main__":
    main()
