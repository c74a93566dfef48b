"""For the site: files of the repository that its pages link to, and whose links lead out of docs/, become pages of it.

The links in the sources stay what they are in the repository; the site has its own addresses for them.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
IN_THE_MENU = (ROOT / "results" / "README.md", ROOT / "examples" / "README.md")
SHOWN = {".py": "python", ".toml": "toml", ".ipynb": "json", ".json": "json", ".csv": "text", ".tex": "latex"}
"""What is shown as code, and in which language; other files are handed out as they are."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def target(page: Path, link: str) -> Path | None:
    """Return the file of the repository that a page's link means, a folder by its README; None if there is none."""
    if "://" in link:
        return None
    path = Path(os.path.normpath(page.parent / link))
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


@cache
def linked(page: Path) -> tuple[Path, ...]:
    """Return the files of the repository that a page links to."""
    found = (target(page, link) for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")))
    return tuple(path for path in found if path is not None)


def place(path: Path) -> str:
    """Return where a file stands on the site, as the source of a page."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"repository/{name}.md" if path.suffix in SHOWN else f"repository/{name}"


def taken_in() -> list[Path]:
    """Return the files outside of docs/ that the menu or a page of the site links to, from page to page."""
    ahead, seen = [*DOCS.rglob("*.md"), *IN_THE_MENU], {*IN_THE_MENU}
    while ahead:
        new = [path for path in linked(ahead.pop()) if path not in seen and not path.is_relative_to(DOCS)]
        seen.update(new)
        ahead += [path for path in new if path.suffix == ".md"]
    return sorted(seen)


def rewritten(text: str, page: Path) -> str:
    """Return a page's text whose links to files of the repository lead to where these stand on the site."""
    here = Path(place(page)).parent

    def moved(match: re.Match[str]) -> str:
        path = target(page, match[2])
        return match[0] if path is None else match[1] + os.path.relpath(place(path), here) + match[3]

    return LINK.sub(moved, text)


def shown(path: Path) -> str:
    """Return the page that shows a file as code."""
    name, language = path.relative_to(ROOT).as_posix(), SHOWN[path.suffix]
    return f"# {name}\n\n`````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n`````\n"


def on_files(files: Any, config: Any) -> Any:
    """Give the site the files that its pages link to (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for path in taken_in():
        what = {"content": shown(path)} if path.suffix in SHOWN else {"abs_src_path": str(path)}
        files.append(File.generated(config, place(path), **what))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page (a hook of mkdocs)."""
    uri = page.file.src_uri
    path = ROOT / uri.removeprefix("repository/") if uri.startswith("repository/") else DOCS / uri
    return rewritten(markdown, path) if path.is_file() else markdown
