"""A tokeniser that any machine computes alike: about a token a word, and the tokens joined are the text."""

import re
import zlib

_TOKEN = re.compile(r"<\|\w+\|>|\s*\w{1,8}|\s*[^\w\s]|\s+")
_VOCABULARY = 32_000


def tokenise(text: str) -> list[str]:
    """Split *text*; leading blanks belong to the token."""
    return _TOKEN.findall(text)


def token_ids(tokens: list[str]) -> list[int]:
    """Stable numbers for the `context` of a reply."""
    crc = zlib.crc32
    return [crc(token.encode("utf-8", "replace")) % _VOCABULARY for token in tokens]
