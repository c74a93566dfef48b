"""Fetch a file from an address that the user gives, and go on where a fetch stopped."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from steelyard import __version__
from steelyard._support._files import append_bytes, check_links, read_text, write_text
from steelyard.experiments.errors import DataError

__all__ = ["fetch", "name_of"]

_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def name_of(url: str, otherwise: str) -> str:
    """Return the file's name in a URL, or `otherwise` where it ends in none.

    Raises:
        DataError: it is no address of http or https.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"--url {url!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"--url must be an address that begins with https:// or http://, got {url!r}")
    name = unquote(parts.path).rpartition("/")[2]
    return name if re.fullmatch(r"[\w-][\w.-]{0,100}", name, re.ASCII) and "." in name else otherwise


def fetch(
    url: str,
    path: Path,
    most_bytes: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
    timeout: float = 60,
) -> None:
    """Fetch `url` into `path`, which is whole or not there; the part that came so far lies in `path`.part.

    A fetch that stopped is resumed where the server takes ranges and says (by ETag or date) that the file is the
    same; otherwise it begins again.

    Args:
        url: of http or https.
        path: where to put it; a file there is left alone, and nothing is fetched.
        most_bytes: how large it may be.
        progress: called with the bytes so far and those of the whole (0: the server does not say).
        timeout: seconds that the server may be silent.

    Raises:
        DataError: the server does not answer, refuses, sends less or more than it announced; it is too large; the disk
            cannot be written.
    """
    if os.path.lexists(path):
        return
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.tag")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for one in (part, tag):
            check_links(one)
        have = part.stat().st_size if part.exists() else 0
        same = read_text(tag).strip() if have and tag.exists() else ""
        request = urllib.request.Request(url, headers={"User-Agent": f"steelyard/{__version__}"})
        if have and same:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", same)
        try:
            answer = urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # there is nothing behind what we have, or another file
                part.unlink(missing_ok=True)
                raise DataError(f"{url}: the part in {part} is not of this file; it was removed, try again") from error
            raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
        with answer:
            whole = _begin(answer, have, part)
            if whole > most_bytes:
                raise DataError(f"{url} has {whole} bytes, more than {most_bytes}: it is not what is published")
            _note(answer, tag)
            done = part.stat().st_size if part.exists() else 0
            with append_bytes(part) as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    done += len(block)
                    if done > most_bytes:
                        raise DataError(f"{url} sends more than {most_bytes} bytes: it is not what is published")
                    progress(done, whole)
        if whole and done != whole:
            raise DataError(f"{url}: {done} of {whole} bytes came; the same command goes on from there")
        os.replace(part, path)
        tag.unlink(missing_ok=True)
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and a silent server are OSErrors
        raise DataError(f"{url} could not be fetched: {error}; the same command resumes what came") from error


def _begin(answer: http.client.HTTPResponse, have: int, part: Path) -> int:
    """Make the part ready for what the server sends, and return how large the whole file is (0: it does not say)."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status == 206 and found is not None and int(found[1]) == have:
        return 0 if found[2] == "*" else int(found[2])
    if answer.status == 206:
        raise DataError(f"the server sends another range than it was asked for; remove {part} to begin again")
    part.unlink(missing_ok=True)
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 16 else 0


def _note(answer: http.client.HTTPResponse, tag: Path) -> None:
    """Keep what tells this version of the file from others: a strong ETag, or the date."""
    etag = answer.headers.get("ETag", "")
    same = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
    if same and same.isascii() and same.isprintable():
        write_text(tag, same)
    else:
        tag.unlink(missing_ok=True)
