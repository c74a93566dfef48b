"""Published data sets put in place: verified, unpacked, fetched from an address of the user's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.cli import main
from steelyard.experiments.data import official as module
from steelyard.experiments.data.official import OFFICIAL, Official, digest_of, prepare, verify
from steelyard.experiments.errors import DataError
from tests.experiments.served import Served, serving
from tests.support.layouts import TINY, write_celeba, write_waterbirds

SMALL = {"splits": (16, 8, 12), "groups": TINY[0]}
BIRDS = replace(OFFICIAL["waterbirds"], **SMALL)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Waterbirds as group_DRO packs it."""
    folder = write_waterbirds(tmp_path / "packed")
    made = shutil.make_archive(str(tmp_path / folder.name), "gztar", tmp_path / "packed", folder.name)
    return Path(made)


@pytest.fixture
def served(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving({f"/{archive.name}": archive.read_bytes(), "/contents/blob/": archive.read_bytes()}) as one:
        yield one


def test_counts_are_the_published_ones() -> None:
    for known in OFFICIAL.values():
        assert sum(known.groups) == known.splits[0]
    assert sum(OFFICIAL["waterbirds"].splits) == 11_788
    assert sum(OFFICIAL["celeba"].splits) == 202_599


def test_an_archive_that_is_there_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    shutil.copy(archive, root)
    told = prepare(BIRDS, root)
    assert told == f"36 images in {root / 'waterbird_complete95_forest2water2'}, with the published splits and groups"
    assert prepare(BIRDS, root) == told
    assert sorted(path.name for path in root.iterdir()) == [archive.name.removesuffix(".tar.gz"), archive.name]


@pytest.mark.parametrize("path", ["named", "/contents/blob/"])
def test_an_address_is_fetched_unpacked_and_verified(served: Served, archive: Path, tmp_path: Path, path: str) -> None:
    url = served.address + (f"/{archive.name}" if path == "named" else path)
    seen = []
    told = prepare(BIRDS, tmp_path / "data", [url], lambda what, done, of: seen.append(what))
    assert told.startswith("36 images in ")
    assert {what.split()[0] for what in seen} == {"fetching", "unpacking"}
    prepare(BIRDS, tmp_path / "data", [url])
    assert len(served.asked) == 1


def test_nothing_there_says_where_the_files_are(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Waterbirds is not under .*Official files: https://nlp\.stanford\.edu/data/dro"
    ):
        prepare(BIRDS, tmp_path)


def test_archives_of_other_data_sets_are_left_alone(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    shutil.copy(archive, root / "archive.tar.gz")  # as one of CelebA's may be called
    with pytest.raises(DataError, match="Waterbirds is not under"):
        prepare(BIRDS, root)
    assert [path.name for path in root.iterdir()] == ["archive.tar.gz"]


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file cannot be prepared"):
        prepare(BIRDS, tmp_path / "file")


def test_what_is_not_as_published_is_said(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path)
    with pytest.raises(DataError, match=r"has 16, 8, 12 training, .* published are 4795, 1199, 5794"):
        verify(OFFICIAL["waterbirds"], tmp_path)
    with pytest.raises(DataError, match=r"has 6, 3, 2, 5 training images in its groups, published are 6, 3, 5, 2"):
        verify(replace(BIRDS, groups=(6, 3, 5, 2)), tmp_path)
    next(folder.glob("*/*.jpg")).unlink()
    with pytest.raises(DataError, match=r"1 of 36 images .* are not in"):
        verify(BIRDS, tmp_path)


def faces(root: Path) -> Official:
    """CelebA's archive of images and tables, as its authors publish them, with the digests of these."""
    folder = write_celeba(root, "torchvision")
    shutil.make_archive(str(folder / "img_align_celeba"), "zip", folder, "img_align_celeba")
    shutil.rmtree(folder / "img_align_celeba")
    known = OFFICIAL["celeba"]
    return replace(known, **SMALL, md5={name: digest_of(folder / name) for name in known.md5})


def test_published_digests_are_compared(tmp_path: Path) -> None:
    known = faces(tmp_path)
    with pytest.raises(DataError, match=r"img_align_celeba\.zip has the MD5 .*, published is 00d2c5bc"):
        prepare(replace(OFFICIAL["celeba"], md5={"img_align_celeba.zip": "00d2c5bc"}), tmp_path)
    assert not (tmp_path / "celeba" / "img_align_celeba").exists()
    assert prepare(known, tmp_path).startswith("36 images in ")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("another version\n")
    with pytest.raises(DataError, match=r"list_eval_partition\.txt has the MD5"):
        prepare(known, tmp_path)


def test_the_command_says_it_in_one_line(
    archive: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "OFFICIAL", {"waterbirds": BIRDS})
    monkeypatch.setattr("steelyard.cli.data.OFFICIAL", {"waterbirds": BIRDS})
    root = str(tmp_path / "data")
    assert main(["data", "waterbirds", "--to", root]) == 2
    assert capsys.readouterr().err.startswith("steelyard: error: Waterbirds is not under")
    assert main(["data", "waterbirds", "--to", root, "--url", f"{served.address}/{archive.name}"]) == 0
    told = f"waterbirds: 36 images in {root}/waterbird_complete95_forest2water2, with the published splits and groups"
    assert told in capsys.readouterr().out
    assert main(["data", "waterbirds", "--to", root]) == 0
    assert capsys.readouterr().out.strip() == told
    assert main(["data", "cifar", "--to", root]) == 2
    assert "there is no data set 'cifar'" in capsys.readouterr().err
