"""What a fuzzer feeds: each target takes bytes as a file that someone gave us, and may end in an error of ours only."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import torch
from safetensors.torch import save

import steelyard
from steelyard import selectors
from steelyard._support._state import StateError, decode, digest_of_tree, encode
from steelyard.bilevel import Batch
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.cli.losses import read_losses
from steelyard.experiments.active.fitting import Learned
from steelyard.experiments.active.loop import Pool
from steelyard.experiments.active.state import read_state, restored
from steelyard.experiments.compare.rows import compare as comparison
from steelyard.experiments.compare.tables import comma_separated, markdown, summary, tex
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable
from steelyard.experiments.data.archives import unpack
from steelyard.experiments.data.celeba import CelebA
from steelyard.experiments.data.idx import read_idx
from steelyard.experiments.data.table import read_csv, read_spaced
from steelyard.experiments.data.waterbirds import Waterbirds
from steelyard.experiments.errors import UserError
from steelyard.experiments.models.backbone import Backbone
from steelyard.experiments.priors import ScoreFile
from steelyard.experiments.report.page import render
from steelyard.experiments.report.priors import prior_section
from steelyard.experiments.runs.log import read_metrics
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import read_run
from steelyard.reweight import Reweighting
from tests.support.biased import biased_problem
from tests.support.compared import made

Target = Callable[[bytes, Path], bool]

KIND = "steelyard.checkpoint.1"
_PROBLEM = biased_problem(n=8)
_CHECKPOINT = {
    "identity": {"steelyard": "0.1.0"},
    "stages": [{"parts": {"model": {"w": torch.zeros(2)}}, "done": 1, "finished": False, "random": {}}],
    "note": {"steps": 1},
}
_LINE = {"step": 1, "extra": {"loss": 0.5}}
_SPLIT = {"accuracy": 0.5, "loss": 0.7, "environment_accuracy": [0.5, 0.5], "environment_loss": [0.7, None]}
_RECIPE = {"data": {"name": "coloured_digits"}, "model": {"name": "mlp"}}
_METHOD = {"name": "erm", "training": {"steps": 1}}
_CONFIG = {"name": "x", "overrides": [], "recipe": {**_RECIPE, "method": _METHOD}}


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pandas.DataFrame({"index": [0, 1], "weight": [1.0, 2.0], "probability": [0.5, 1.0], "target": [0, 1]}).to_parquet(
        buffer
    )
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.zeros((2, 3)))
    return buffer.getvalue()


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _allow(work: Callable[[], object], *errors: type[Exception]) -> bool:
    """Return whether `work` gave an answer, and not an error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and NumPy's, about odd versions
            work()
    except (UserError, *errors):
        return False
    return True


def state(data: bytes, folder: Path) -> bool:
    """The bytes of a file of state."""
    return _allow(lambda: decode(data, KIND), StateError)


def checkpoint(data: bytes, folder: Path) -> bool:
    """A checkpoint whose digest is right, its tree fuzzed: what a journal makes of it."""
    tree = data.decode("utf-8", "replace")
    header = {"format": KIND, "tree": tree, "sha256": digest_of_tree(tree, {})}
    path = _put(folder, "checkpoint.safetensors", save({}, header))

    def go_on() -> None:
        journal = Journal(path)
        journal.stage(model=torch.nn.Linear(2, 1))

    return _allow(go_on, CheckpointError)


def recipe(data: bytes, folder: Path) -> bool:
    """A recipe of one's own."""
    path = _put(folder, "recipe.toml", data)
    return _allow(lambda: load_recipe(str(path)))


def inherited(data: bytes, folder: Path) -> bool:
    """The base of a recipe."""
    _put(folder, "heir/theirs.toml", data)
    path = _put(folder, "heir/mine.toml", b'base = "theirs.toml"\nseed = 1\n')
    return _allow(lambda: load_recipe(str(path)))


def base(data: bytes, folder: Path) -> bool:
    """What a recipe says its base is: never a file outside of its folder, nor one behind a link."""
    _put(folder, "outside.toml", SEEDS["recipe"])
    _put(folder, "named/theirs.toml", b"seed = 1\n" + SEEDS["recipe"])
    link = folder / "named" / "link.toml"
    if not link.is_symlink():
        link.symlink_to(folder / "outside.toml")
    text = json.dumps(data.decode("utf-8", "replace"), ensure_ascii=False).replace("\x7f", "\\u007f")
    path = _put(folder, "named/mine.toml", f"base = {text}\n".encode())

    def read() -> None:
        recipe = load_recipe(str(path))
        assert recipe.seed == 1 or recipe.data.name in text, text  # theirs.toml, or one that ships

    return _allow(read)


def override(data: bytes, folder: Path) -> bool:
    """A field set on the command line."""
    return _allow(lambda: load_recipe("coloured_digits/erm", [data.decode("utf-8", "surrogateescape")]))


def metrics(data: bytes, folder: Path) -> bool:
    """The lines of a run."""
    path = _put(folder, "metrics.jsonl", data)
    return _allow(lambda: read_metrics(path))


def config(data: bytes, folder: Path) -> bool:
    """The recipe of a run directory."""
    _put(folder, "run/config.json", data)
    _put(folder, "run/environment.json", b'{"seconds": 1}')
    _put(folder, "run/metrics.jsonl", SEEDS["metrics"])
    return _allow(lambda: read_run(folder / "run"))


def result(data: bytes, folder: Path) -> bool:
    """The samples of a run directory."""
    _put(folder, "whole/config.json", SEEDS["config"])
    _put(folder, "whole/environment.json", b'{"seconds": 1}')
    _put(folder, "whole/metrics.jsonl", SEEDS["metrics"])
    _put(folder, "whole/result.parquet", data)
    return _allow(lambda: read_run(folder / "whole"))


def reweighting(data: bytes, folder: Path) -> bool:
    """A file of learned weights (its documented error is ValueError)."""
    path = _put(folder, "weights.safetensors", data)
    return _allow(lambda: Reweighting.load(path), ValueError)


def backbone(data: bytes, folder: Path) -> bool:
    """A backbone's weights, as torch saves them."""
    path = _put(folder, "weights.pt", data)
    return _allow(lambda: Backbone(weights=str(path)).state())


def losses(data: bytes, folder: Path) -> bool:
    """A loss matrix of one's own."""
    path = _put(folder, "losses.npy", data)
    return _allow(lambda: read_losses(path))


def scores(data: bytes, folder: Path) -> bool:
    """Scores of one's own."""
    path = _put(folder, "scores.csv", data)
    return _allow(lambda: ScoreFile(path=str(path)).scores(_PROBLEM))


def table(data: bytes, folder: Path) -> bool:
    """A text table, both ways to read one."""
    path = _put(folder, "table.csv", data)
    spaced = _allow(lambda: read_spaced(path, ("a", "b")).codes("b", {"1": 1, "-1": 0}))
    return _allow(lambda: read_csv(path, ("a", "b")).numbers("a")) or spaced


def own_table(data: bytes, folder: Path) -> bool:
    """A table of one's own, as text, as Parquet and as npz."""
    read = [_own(_put(folder, f"own{ending}", data)) for ending in (".csv", ".parquet", ".npz")]
    return any(read)


def own_arrays(data: bytes, folder: Path) -> bool:
    """Features and labels of one's own, as npz and as safetensors."""
    read = [
        _allow(lambda path=path: OwnArrays(file=str(path), features="x", target="y", split="part").load(0))  # type: ignore[misc]
        for path in (_put(folder, f"own{ending}", data) for ending in (".npz", ".safetensors"))
    ]
    return any(read)


def own_features(data: bytes, folder: Path) -> bool:
    """Features of one's own as .npy."""
    path, labels = _put(folder, "features.npy", data), folder / "labels.npy"
    numpy.save(labels, numpy.arange(12) % 2)
    return _allow(lambda: OwnArrays(features=str(path), target=str(labels)).load(0))


def _own_npz() -> bytes:
    buffer = io.BytesIO()
    labels = {"y": numpy.arange(6) % 2, "part": numpy.arange(6) // 2}
    numpy.savez(buffer, x=numpy.zeros((6, 2)), **labels)
    return buffer.getvalue()


def _own_npy() -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.ones((12, 2)))
    return buffer.getvalue()


def _own(path: Path) -> bool:
    return _allow(lambda: OwnTable(file=str(path), target="y", split="part", missing="category").load(0))


def own_images(data: bytes, folder: Path) -> bool:
    """The table of a folder of images, as text, separated by blanks, as Parquet and as npz."""
    for name in ("a.png", "b.png"):
        _put(folder, f"images/{name}", b"no image, which is seen when it is decoded")
    read = [
        _allow(lambda path=path, sign=sign: _images(path, sign).load(0))  # type: ignore[misc]
        for path, sign in (
            *((_put(folder, f"images{ending}", data), ",") for ending in (".csv", ".parquet", ".npz")),
            (_put(folder, "images.txt", data.replace(b",", b" ")), " "),
        )
    ]
    return any(read)


def _images(path: Path, separator: str) -> OwnImages:
    labels = {"target": "y", "split": "part", "id": "row", "separator": separator}
    return OwnImages(folder=str(path.parent / "images"), table=str(path), inputs="images", workers=0, **labels)


def archive(data: bytes, folder: Path) -> bool:
    """An archive, as tar and as zip: nothing lies beside its folder, and nothing is left of a bad one."""
    unpacked = []
    for name in ("a.tar.gz", "a.zip"):
        path, out = _put(folder, f"archive/{name}", data), folder / "archive" / "out"
        shutil.rmtree(out, ignore_errors=True)
        unpacked.append(_allow(lambda path=path, out=out: unpack(path, out, 1 << 20)))  # type: ignore[misc]
        assert unpacked[-1] or not any(out.iterdir())
        assert {one.name for one in (folder / "archive").iterdir()} <= {"a.tar.gz", "a.zip", "out"}
    return any(unpacked)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("birds/metadata.csv", b"img_id\n")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        info = tarfile.TarInfo("birds/metadata.csv")
        info.size = 7
        packed.addfile(info, io.BytesIO(b"img_id\n"))
    return buffer.getvalue()


def tar_archive(data: bytes, folder: Path) -> bool:
    """The same, begun from a tar."""
    return archive(data, folder)


def waterbirds(data: bytes, folder: Path) -> bool:
    """Waterbirds' metadata.csv."""
    _put(folder, "waterbird_complete95_forest2water2/metadata.csv", data)
    return _allow(lambda: Waterbirds().read(folder))


def celeba(data: bytes, folder: Path) -> bool:
    """CelebA's attributes, as torchvision unpacks them."""
    place = folder / "celeba"
    _put(place, "list_attr_celeba.txt", data)
    _put(place, "list_eval_partition.txt", b"1.jpg 0\n2.jpg 1\n")
    return _allow(lambda: CelebA().read(folder))


def compare(data: bytes, folder: Path) -> bool:
    """The figures of a run, as far as the tables of a comparison."""
    _put(folder, "compared/config.json", SEEDS["config"])
    _put(folder, "compared/environment.json", b'{"seconds": 1}')
    _put(folder, "compared/metrics.jsonl", data)

    def tables() -> None:
        rows = comparison([read_run(folder / "compared", samples=False)])
        for text in (markdown, comma_separated, tex, summary):
            text(rows)

    return _allow(tables)


def report(data: bytes, folder: Path) -> bool:
    """The samples of a run, as far as the page about it."""
    _put(folder, "shown/config.json", SEEDS["config"])
    _put(folder, "shown/environment.json", b'{"seconds": 1}')
    _put(folder, "shown/metrics.jsonl", SEEDS["metrics"])
    _put(folder, "shown/result.parquet", data)
    return _allow(lambda: render([read_run(folder / "shown")]))


def prior(data: bytes, folder: Path) -> bool:
    """The prior of a run, as far as the report's part about it."""
    _put(folder, "made/prior.safetensors", data)
    facts = {"label_flipped": ("Noise", {True: "wrong", False: "right"})}
    samples = pandas.DataFrame({"index": [0, 1], "label_flipped": [True, False]})
    run = replace(made(0, [(0.5, 0.5, 0.5)]), directory=folder / "made", samples=samples)
    return _allow(lambda: prior_section([run], facts))


def active(data: bytes, folder: Path) -> bool:
    """The state of a run of active learning, as far as the loop that goes on from it."""
    path = _put(folder, "state.safetensors", data)
    net = torch.nn.Linear(2, 2)
    template = Learned(net, selectors.ema(net, 0.9, bias_corrected=True))
    pool = Pool(Batch.of(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)), torch.zeros(4, dtype=torch.bool), 2)
    return _allow(lambda: restored(path, read_state(path), template, pool))


def idx(data: bytes, folder: Path) -> bool:
    """A file of MNIST's format."""
    path = _put(folder, "train-images-idx3-ubyte", data)
    return _allow(lambda: read_idx(path, 3))


def _prior() -> bytes:
    scores = [{"name": "lhd", "weight": 1.0, "keep": "high", "figures": {"radius": 1.0, "gap": 2.0, "holds": 0.0}}]
    header = {"format": "steelyard.prior", "version": "1", "digest": "x", "scores": json.dumps(scores)}
    halves = torch.full((2,), 0.5, dtype=torch.float64)
    tensors = {"probabilities": halves, "probabilities.0": halves + 0, "scores.0": halves + 1}
    return save({**tensors, "index": torch.arange(2)}, header)


def _active() -> bytes:
    net = torch.nn.Linear(2, 2)
    average = selectors.ema(net, 0.9, bias_corrected=True).state_dict()
    tensors = {"picked.0000": torch.tensor([1, 3])}
    tensors |= {f"model.{name}": value.clone() for name, value in net.state_dict().items()}
    tensors |= {f"average.{name}": value.clone() for name, value in average.items()}
    row = {"labelled": 2.0, "clean_share_selected": None, "validation": 0.5, "test": 0.5}
    return save(tensors, {"recipe": "{}", "history": json.dumps([row])})


SEEDS: dict[str, bytes] = {
    "state": encode(_CHECKPOINT, KIND),
    "checkpoint": json.dumps(
        {
            "dict": [
                ["identity", {"dict": [["steelyard", steelyard.__version__]]}],
                ["note", {"dict": []}],
                ["stages", {"list": []}],
            ]
        }
    ).encode(),
    "recipe": b'[data]\nname = "coloured_digits"\n[model]\nname = "mlp"\nhidden = [8]\n[method]\nname = "erm"\n',
    "base": b"theirs.toml",
    "override": b"method.training.steps=3",
    "metrics": json.dumps({**_LINE, "train": _SPLIT, "validation": _SPLIT, "test": _SPLIT}).encode() + b"\n",
    "config": json.dumps(_CONFIG).encode(),
    "result": _parquet(),
    "reweighting": save(
        {name: torch.ones(2) for name in ("weights", "probabilities")} | {"index": torch.arange(2)},
        {"format": "steelyard.reweighting", "version": "1", "history": "[]"},
    ),
    "backbone": _saved({"w": torch.zeros(2)}),
    "losses": _npy(),
    "scores": b"index,score\n0,1.5\n3,-2\n",
    "table": b"a,b\n1,-1\n2,1\n",
    "own_arrays": _own_npz(),
    "own_features": _own_npy(),
    "own_table": b"x,y,part\n1,a,0\n2,b,0\n1,a,1\n,b,1\n3,a,2\n1,b,2\n",
    "celeba": b"2\nBlond_Hair Male\n1.jpg 1 -1\n2.jpg -1 1\n",
    "own_images": b"file,row,y,part\na.png,0,no,0\nb.png,1,yes,0\na.png,2,no,1\nb.png,3,yes,1\n"
    b"a.png,4,no,2\nb.png,5,yes,2\n",
    "archive": _archive(),
    "tar_archive": _tar(),
    "prior": _prior(),
    "active": _active(),
    "waterbirds": b"img_id,img_filename,y,split,place\n1,a.jpg,0,0,1\n2,b.jpg,1,1,0\n",
    "idx": b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (1, 2, 2)) + b"\x01\x02\x03\x04",
}
SEEDS |= {"compare": SEEDS["metrics"], "report": SEEDS["result"], "inherited": SEEDS["recipe"]}
SLOW = ("report",)  # draws plots
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(
            state,
            checkpoint,
            recipe,
            inherited,
            base,
            override,
            metrics,
            config,
            result,
            reweighting,
            backbone,
            losses,
            scores,
        ),
        *(table, own_table, own_arrays, own_features, own_images, archive, tar_archive, waterbirds, celeba, idx),
        *(compare, report, prior, active),
    )
}
