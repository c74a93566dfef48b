"""Foreign run folders: copies of real runs with one thing in one file that no run of ours has.

``python -m tests.fuzz.foreign --cases 300`` reads each by `report` and `compare`, or resumes it by `active
--resume`, in this process, and prints what ended in an error that is not ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steelyard.cli import main
from steelyard.experiments.active.grid import Grid
from steelyard.experiments.runs.run import execute
from tests.fuzz.mutate import mutated
from tests.support.ending import Killed
from tests.support.shrunk import short

__all__ = ["CASES", "made", "tried"]

FEW = ("schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=1", "model.hidden=[4]")
MOONS = ("schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=2")
DIGITS = ("method.training.steps=2", "method.training.evaluate_every=1", "model.hidden=[4]")

RUNS = {"erm": ("erm", "one"), "maple": ("maple_prior", "one"), "pair": ("maple_prior", "two")}
ACTIVE = {"active": ("digits", FEW), "moons": ("four_moons", MOONS)}

POISON: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 0.5, 1.5, 10**18, 10**400, -(10**400), 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "\x1b[31mred\x07", "=1+1", "a\u202eb", "..", "/dev/zero", "9" * 5000, "cuda:99", "nan"),
    *([], {}, [[]], [1, 2, 3], [None], ["x"], [True], [10**400], {"x": 1}, {"name": "erm"}, [0.5] * 50),
)
_DEEP = "[" * 100_000
_SURROUNDED = ("{}", "[]", "null", "1", '""', "", "\ufeff{}", _DEEP, "9" * 5000, '{"a": ' * 45 + "1" + "}" * 45)


def made(folder: Path) -> dict[str, Path]:
    """Carry out the runs that are damaged; return their folders by name."""
    for seed in (1, 2):
        for name, recipe in (("erm", "coloured_digits/erm"), ("maple", "coloured_digits/maple_prior")):
            one = short(recipe) if name == "maple" else short(recipe, *DIGITS)
            execute(_seeded(one, seed), folder / name / f"seed{seed}", name=recipe, overrides=("a=1",))
    for name in ACTIVE:
        _grid(name, folder / name).execute(folder / "tables", **_ACTIVE_OPTIONS)  # type: ignore[arg-type]
    with contextlib.suppress(Killed):
        _grid("active", folder / "dying").execute(folder / "tables", progress=_die, **_ACTIVE_OPTIONS)  # type: ignore[arg-type]
    return {path.name: path for path in folder.iterdir()}


def _seeded(recipe: Any, seed: int) -> Any:
    from dataclasses import replace

    return replace(recipe, seed=seed)


_ACTIVE_OPTIONS = {"data_root": None, "download": False, "overwrite": False, "resume": True, "checkpoint_every": 1}


def _die(done: int, text: str) -> None:
    raise Killed


def _grid(name: str, out: Path) -> Grid:
    recipe, sets = ACTIVE[name]
    return Grid.of(recipe, sets, out, selectors=["conf"], seeds=[0])


# Damages: each takes the file and a source of randomness.


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], draw: random.Random) -> Any:
    if not path:
        return draw.choice(POISON)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key, rest = path[0], path[1:]
    if rest:
        copy[key] = _changed(copy[key], rest, draw)
        return copy
    match draw.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[draw.choice(("x", "name", "\x1b[2J", "\ud800", "=1", "radius", "step"))] = draw.choice(POISON)
        case 2 if isinstance(copy, list):
            copy += [draw.choice(POISON)] * draw.choice((1, 5))
        case _:
            copy[key] = draw.choice(POISON)
    return copy


def damaged_json(text: str, draw: random.Random) -> str:
    """Return JSON with one value changed, taken out or put in."""
    value = json.loads(text)
    places = list(_places(value))
    return json.dumps(_changed(value, draw.choice(places), draw))


def _json(path: Path, draw: random.Random) -> None:
    path.write_text(damaged_json(path.read_text(), draw))


def _line(path: Path, draw: random.Random) -> None:
    """Change one field in one line of metrics, or in all of them alike."""
    lines = path.read_text().splitlines()
    chosen = {draw.randrange(len(lines))} if draw.random() < 0.5 else set(range(len(lines)))
    seed = draw.random()
    made_ = [damaged_json(line, random.Random(seed)) if k in chosen else line for k, line in enumerate(lines)]
    path.write_text("\n".join(made_) + "\n")


def _text(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(_SURROUNDED), encoding="utf-8")


def _bytes(path: Path, draw: random.Random) -> None:
    path.write_bytes(mutated(path.read_bytes(), draw))


def _cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def _missing(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


_CELLS: tuple[Any, ...] = (
    -1,
    0,
    2,
    7,
    10**12,
    2**63 - 1,
    -0.5,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    None,
    "x",
    "",
    True,
)


def _column(path: Path, draw: random.Random) -> None:
    """Put other values into a column of a table of samples: one, or all of them."""
    frame = pandas.read_parquet(path)
    name = draw.choice(list(frame.columns))
    cell, kind = draw.choice(_CELLS), draw.randrange(9)
    column: Any = frame[name].astype("object").tolist()
    if kind < 3:
        column[draw.randrange(len(column))] = cell
    elif kind < 5:
        column = [cell] * len(column)
    elif kind == 5:
        column = [[value] for value in column]
    elif kind == 6:
        column = [str(value) for value in column]
    elif kind == 7:
        column = [column[0]] * len(column)
    else:
        column = [{"a": value} for value in column]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = {one: pyarrow.array(frame[one]) for one in frame.columns}
        try:
            columns[name] = pyarrow.array(column)
        except (pyarrow.ArrowException, OverflowError):  # of two kinds: no Parquet column is
            columns[name] = pyarrow.array([str(value) for value in column])
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _rows(path: Path, draw: random.Random) -> None:
    """Other rows, or other columns."""
    frame = pandas.read_parquet(path)
    match draw.randrange(8):
        case 0:
            frame = frame.iloc[:0]
        case 1:
            frame = frame.iloc[:1]
        case 2:
            frame = pandas.concat([frame, frame])
        case 3:
            frame = frame.drop(columns=draw.choice(list(frame.columns)))
        case 4:
            frame = frame.set_index(draw.choice(list(frame.columns)))
        case 5:
            frame = frame.sample(frac=0.5, random_state=draw.randrange(100))
        case 6:
            frame = frame.iloc[::-1]
        case _:
            table = pyarrow.table({name: frame[name] for name in frame})
            name = draw.choice(table.column_names)
            table = table.append_column(name, table[name])
            pyarrow.parquet.write_table(table, path)
            return
    frame.to_parquet(path)


def _tensors(path: Path, draw: random.Random) -> None:
    """Another tensor of a safetensors file, by shape, kind or value."""
    header, tensors = _opened(path)
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    match draw.randrange(10):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = value[:0] if value.ndim else value
        case 2:
            tensors[name] = value.to(draw.choice((torch.int32, torch.float16, torch.bool, torch.uint8, torch.bfloat16)))
        case 3:
            tensors[name] = value[None].contiguous()
        case 4:
            tensors[name] = torch.tensor(1.0)
        case 5:
            tensors[name] = torch.full_like(value, draw.choice((-1, 2, 100)))
        case 6 if value.is_floating_point():
            tensors[name] = torch.full_like(value, draw.choice((float("nan"), float("inf"), 1e30)))
        case 7:
            tensors[name] = value.double() - 10**7
        case 8:
            tensors[draw.choice(("picked.0009", "scores.7", "model.x", "x"))] = value.clone()
        case _:
            tensors[name] = torch.cat([value, value]) if value.ndim else value
    save_file(tensors, path, header)


def _header(path: Path, draw: random.Random) -> None:
    """Another header of a safetensors file, in the JSON that it holds or around it."""
    header, tensors = _opened(path)
    name = draw.choice(sorted(header))
    try:
        header[name] = damaged_json(header[name], draw) if draw.random() < 0.9 else draw.choice(_SURROUNDED)
    except ValueError:
        header[name] = draw.choice(("", "x", "\x1b[31m"))
    if draw.random() < 0.1:
        del header[name]
    save_file(tensors, path, header)


def _opened(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


Damage = Callable[[Path, random.Random], None]
ANY: tuple[Damage, ...] = (_bytes, _cut, _missing, _folder, _pipe)
RUN_FILES: dict[str, tuple[Damage, ...]] = {
    "config.json": (_json, _json, _json, _json, _text),
    "environment.json": (_json, _text),
    "metrics.jsonl": (_line, _line, _line, _line, _text),
    "result.parquet": (_column, _column, _column, _column, _rows, _rows),
    "prior.safetensors": (_tensors, _tensors, _header, _header),
    "reweighting.safetensors": (_tensors,),
    "model.safetensors": (_tensors,),
}
ACTIVE_FILES: dict[str, tuple[Damage, ...]] = {
    "config.json": (_json, _text),
    "state.safetensors": (_tensors, _tensors, _tensors, _header, _header, _header),
    "environment.json": (_json, _text),
    "rounds.csv": (_text,),
    "checkpoint.safetensors": (_tensors, _header),
}
CASES = tuple([*RUNS] * 6 + [*ACTIVE, "dying"] * 3)  # what is damaged, by the number of a case


def tried(case: int, runs: dict[str, Path], folder: Path) -> tuple[str, list[int]]:
    """Make foreign folder number `case` below `folder` and read it; return what was done and the exit statuses.

    Raises:
        Exception: what a command ended in that is not an error of ours.
    """
    draw, kind = random.Random(case), CASES[case % len(CASES)]
    place = folder / "foreign"
    if kind in RUNS:
        name = "erm" if kind == "erm" else "maple"
        shutil.copytree(runs[name], place)
        seeds = [place / "seed1", place / "seed2"] if kind == "pair" else [place / "seed1"]
        what = _damage(draw.choice(seeds), RUN_FILES, draw)
        named = list(map(str, seeds))
        commands = [[command, *named, "--out", str(folder / command)] for command in ("report", "compare")]
    else:
        shutil.copytree(runs[kind], place)
        recipe, sets = ACTIVE["moons" if kind == "moons" else "active"]
        (run,) = place.glob("*/conf*/seed0")
        what = _damage(run, ACTIVE_FILES, draw)
        words = [word for one in sets for word in ("--set", one)]
        words += ["--selectors", "conf", "--seeds", "0", "--out", str(place)]
        commands = [["active", recipe, *words, "--tables", str(folder / "tables"), "--resume", "--threads", "1"]]
    statuses = []
    for command in commands:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's and matplotlib's, of figures that are NaN
            statuses.append(main(command))
    return f"{kind}: {what}", statuses


def _damage(run: Path, files: dict[str, tuple[Damage, ...]], draw: random.Random) -> str:
    present = [name for name in files if (run / name).is_file()]
    weights = [len(files[name]) for name in present]
    name = draw.choices(present, weights)[0]
    damage = draw.choice(files[name]) if draw.random() < 0.85 else draw.choice(ANY)
    damage(run / name, draw)
    return f"{damage.__name__[1:]} of {run.name}/{name}"


def _all(cases: range) -> None:
    found: dict[str, int] = {}
    count, refused, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as whole:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runs = made(Path(whole) / "runs")
        for case in cases:
            folder = Path(whole) / str(case)
            folder.mkdir()
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    _, statuses = tried(case, runs, folder)
                refused += max(statuses) > 0
            except Exception as error:  # noqa: BLE001 (any that gets here is a finding)
                where = traceback.extract_tb(error.__traceback__)
                own = [step for step in where if "steelyard" in step.filename and "tests" not in step.filename]
                step = own[-1] if own else where[-1]
                line = f"{type(error).__name__} at {Path(step.filename).name}:{step.lineno}: {str(error)[:120]!a}"
                if line not in found:
                    print(f"case {case}: {line}", flush=True)
                    found[line] = case
            count += 1
            shutil.rmtree(folder)
    took = time.monotonic() - began
    print(json.dumps({"folders": count, "refused": refused, "findings": len(found), "seconds": round(took)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    _all(range(chosen.first, chosen.first + chosen.cases))
    sys.exit(0)
