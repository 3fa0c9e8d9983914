"""Extractive summaries: the sentences of a text that have the most words in common with the rest."""

import re
from collections import Counter
from functools import lru_cache

_SUMMARY_REQUEST = re.compile(r"\b(summar\w*|tl;?dr|abstract|gist|in (one|two|a few) sentences?)\b", re.IGNORECASE)
_FENCE = re.compile(r"```.*?(```|\Z)|^[ \t]*\.\. [^\n]*$(\n[ \t]+:[^\n]*$)*|<!--.*?-->", re.DOTALL | re.MULTILINE)
_MARKUP = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), " "),  # images and badges
    (re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)"), " "),
    (re.compile(r"\[([^\]]+)\](\([^)]*\)|\[[^\]]*\])"), r"\1"),  # Markdown links
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`__?"), r"\1"),  # RST links
    (re.compile(r":\w+:`([^`]+)`"), r"\1"),  # RST roles
    (re.compile(r"<[^>\n]{1,200}>"), " "),  # HTML
    (re.compile(r"https?://\S+"), " "),
    (re.compile(r"\*\*|__|``?"), ""),
    (re.compile(r"(?<![\w*])[*_](\w[^*_\n]*\w)[*_](?![\w*])"), r"\1"),  # emphasis
    (re.compile(r"(?<=\w)_(?=[\s.,;:)]|$)"), ""),  # RST references
    (re.compile(r"^\s*(>>>|\.\.\.|\$) .*$", re.MULTILINE), ""),  # sessions
)
_RULE = re.compile(r"\s*([=\-~^*#_+|:.\"'\s])\1{2,}\s*")
_BULLET = re.compile(r"^\s*([-*+•>]|\d+[.)]|#+|\|)(\s+|$)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_CODE = re.compile(r"#\d|[=_{}<>\\/@]|\w\(|\w\.\w")
_NO_CONTENT = re.compile(
    r"\b(licen[sc]ed?|changelog|documentation|docs|sponsor|tidelift|install(ed)?|issues?|see the)\b|\?$",
    re.IGNORECASE,
)
_DEFINITION = re.compile(r"\b(is an?|are|provides|lets you|allows|implements|makes it)\b")
_CANDIDATES = 100
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    """
    about also and any are can each for from has have into its more not other our out such than that the their them then
    these they this those through use used using was well were what when which will with you your
    """.split()  # noqa: SIM905 - shorter than a list
)


def asks_for_summary(prompt: str) -> bool:
    """Whether the instruction at the beginning or the end of *prompt* asks for a summary."""
    return bool(_SUMMARY_REQUEST.search(prompt[:600]) or _SUMMARY_REQUEST.search(prompt[-300:]))


@lru_cache(maxsize=256)
def summarise(prompt: str, sentences: int = 2) -> str:
    """Pick the most central sentences of the text in *prompt*, in their order.

    Args:
        prompt: A text together with the instruction to summarise it.
        sentences: The largest number of sentences.

    Returns:
        The sentences; empty if there are none besides the instruction.
    """
    # The beginning of a document explains it; later parts are often changelogs.
    found = _sentences(prompt)[:_CANDIDATES]
    words = [[word for word in map(str.lower, _WORD.findall(sentence)) if word not in _COMMON] for sentence in found]
    frequency = Counter(word for sentence in words for word in set(sentence))

    def weight(position: int) -> float:
        distinct = set(words[position])
        if not distinct:
            return 0.0
        central = sum(frequency[word] for word in distinct) / (len(distinct) + 4)
        early = 1.0 + 2.0 / (1 + position)
        short = 1.0 if len(words[position]) >= 5 else 0.4
        prose = 1.0 / (1 + len(_CODE.findall(found[position])) / 3)
        content = 0.4 if _NO_CONTENT.search(found[position]) else 1.0
        definition = 1.3 if _DEFINITION.search(found[position]) else 1.0
        return central * early * short * prose * content * definition

    best = sorted(range(len(found)), key=lambda position: (-weight(position), position))[:sentences]
    return " ".join(found[position] for position in sorted(best))


def _sentences(prompt: str) -> list[str]:
    found = []
    for paragraph in _paragraphs(prompt):
        for sentence in _SENTENCE.split(paragraph):
            text = " ".join(sentence.split())
            if 25 <= len(text) <= 400 and text[-1] in ".!?" and text[0] != "*" and not _SUMMARY_REQUEST.search(text):
                found.append(text)
    if found:
        return found
    # Without a proper sentence, take the longest line.
    lines = [" ".join(paragraph.split()) for paragraph in _paragraphs(prompt)]
    return [max((line[:400] for line in lines if line and not _SUMMARY_REQUEST.search(line)), key=len, default="")]


def _paragraphs(prompt: str) -> list[str]:
    text = _FENCE.sub("\n\n", prompt)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    paragraphs, current = [], list[str]()
    for line in text.splitlines():
        if not line.strip() or _RULE.fullmatch(line):
            if _RULE.fullmatch(line) and line.strip():
                current.clear()  # a rule under a heading
            paragraphs.append(" ".join(current))
            current = []
        elif _BULLET.match(line):
            paragraphs.append(" ".join(current))
            current = [_BULLET.sub("", line).strip()]
        else:
            current.append(line.strip())
    paragraphs.append(" ".join(current))
    return [paragraph for paragraph in paragraphs if paragraph]
