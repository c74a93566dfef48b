"""Small damages to a file: what disks, editors and attackers do."""

from __future__ import annotations

import random

__all__ = ["mutated"]

_TOKENS = (
    *(b"", b"\x00", b"\xff", b"\n", b'"', b"{", b"nan", b"1e999", b"-1", b"null", b"\xed\xa0\x80"),
    *(b"[" * 3000, b"9" * 5000),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return `data` after one to four damages: a byte changed, a piece cut out, doubled, moved, or a token put in."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(data))
        end = min(len(data), start + draw.choice((1, 1, 2, 4, 8, 64)))
        piece = data[start:end]
        match draw.randrange(5):
            case 0:
                piece = bytes(byte ^ (1 << draw.randrange(8)) for byte in piece)
            case 1:
                piece = b""
            case 2:
                piece = piece * draw.choice((2, 3, 100))
            case 3:
                piece = draw.choice(_TOKENS) + piece
            case 4:
                piece = draw.choice(_TOKENS)
        data = data[:start] + piece + data[end:]
    return data
