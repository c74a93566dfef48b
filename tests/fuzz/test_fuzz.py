"""Every reader of other people's files, on mutated files: an error of ours or an answer, and no code runs."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.recipe import load_recipe
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import SEEDS, SLOW, TARGETS


@pytest.fixture(scope="module")
def folder():  # type: ignore[no-untyped-def]
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("name", TARGETS)
def test_the_seed_itself_is_read(name: str, folder: Path) -> None:
    """Otherwise all that follows would fail at the door."""
    assert TARGETS[name](SEEDS[name], folder)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200), seed=st.integers(0, 2**32))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bytes_end_in_an_error_of_ours(name: str, folder: Path, data: bytes, seed: int) -> None:
    if name not in SLOW or seed % 8 == 0:
        TARGETS[name](data, folder)
        TARGETS[name](mutated(SEEDS[name], random.Random(seed)), folder)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("how", ["pickle", "torch", "torch, old"])
def test_a_malicious_pickle_stays_inert(name: str, how: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(mark),)

    place = tmp_path / "evil"
    if how == "pickle":
        place.write_bytes(pickle.dumps(Malice()))
    else:
        torch.save(Malice(), place, _use_new_zipfile_serialization=how == "torch")
    TARGETS[name](place.read_bytes(), tmp_path / "files")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malice()))  # it would have
    assert mark.exists()


@pytest.mark.parametrize("text", ["../outside.toml", "link.toml", "./../outside.toml", "x/../../outside.toml"])
def test_a_base_stays_in_its_folder(text: str, folder: Path) -> None:
    assert not TARGETS["base"](text.encode(), folder)
    assert not TARGETS["base"](str(folder / "outside.toml").encode(), folder)
    assert (folder / "outside.toml").is_file()


@pytest.mark.parametrize(
    "text",
    [
        '[method]\nname = "os.system"\n',
        '[method]\n_target_ = "os.system"\ncommand = "touch ran"\n',
        '[method]\nname = "erm"\n__class__ = "os"\n',
        "device = \"__import__('os').mkdir('ran')\"\n[method]\nname = \"erm\"\n",
        '[method]\nname = "erm"\ntraining = { optimizer = { name = "!!python/object/apply:os.mkdir [ran]" } }\n',
        'selection = "$(mkdir ran)"\n[method]\nname = "erm"\n',
    ],
)
def test_a_malicious_recipe_stays_inert(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head, _, rest = text.partition("[method]")
    whole = f'{head}\n[data]\nname = "coloured_digits"\n[model]\nname = "mlp"\n[method]{rest}'
    (tmp_path / "recipe.toml").write_text(whole)
    with pytest.raises(RecipeError):
        load_recipe("recipe.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
