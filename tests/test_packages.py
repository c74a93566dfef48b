"""The one error for a package that is not installed: it names the use, the package and the install; others pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard._support._packages import MissingPackage, needed_by


def test_a_missing_package_is_named_with_its_use_and_its_install() -> None:
    with (
        pytest.raises(
            MissingPackage, match=r"^this needs absent_one, which is not installed: pip install absent$"
        ) as e,
        needed_by("this", "absent"),
    ):
        import absent_one.inside  # noqa: F401
    assert isinstance(e.value, ImportError)
    assert e.value.name == "absent_one"


def test_the_innermost_use_speaks() -> None:
    with (
        pytest.raises(MissingPackage, match=r"^inner needs absent_one, .* pip install one$"),
        needed_by("outer", "two"),
        needed_by("inner", "one"),
    ):
        import absent_one  # noqa: F401


def test_a_module_of_ours_that_is_missing_is_no_package_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"steelyard\.nowhere") as e, needed_by("this", "absent"):
        import steelyard.nowhere  # noqa: F401
    assert not isinstance(e.value, MissingPackage)


def test_a_package_that_is_there_and_broken_speaks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("from os import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="no_such_name") as e, needed_by("this", "absent"):
        import broken_one  # noqa: F401
    assert not isinstance(e.value, MissingPackage)
