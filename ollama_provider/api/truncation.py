"""Detection of truncated prompts, for servers that do not report them.

A server since 0.12.6 answers 400 to a prompt over its context, if the request has ``truncate: false``. Older servers
ignore the field: they truncate the prompt, or drop the oldest messages of a chat, and answer 200. What can be checked
then is the number of tokens that they report (``prompt_eval_count``), which depends on the context and no longer on
the prompt:

* all of the context: it was filled to the brim (measured on 0.24.0: 2048 of 2048);
* ``num_keep`` and half of the rest, give or take two: what remains when the middle is thrown out (measured by users on
  0.32: 2050 of 4096).

The detection is conservative: it reports a prompt only if nothing else explains the number. So some truncated prompts
are missed, above all those whose beginning was in the server's cache, which it does not count before 0.30.1.
"""

import re

from ollama_provider.api.schemas import ChatRequest, GenerateRequest, InferenceReply

#: What the server keeps of a prompt's beginning unless ``options.num_keep`` says otherwise.
NUM_KEEP = 4
#: A token of ordinary text is shorter on average: 4 to 5 characters in English, 1 to 3 in most other languages.
LONG_TOKEN = 6
#: And no ordinary text has tokens that are longer on average than this.
LONGEST_TOKEN = 12

_RUN = re.compile(r"(\W)\1{3,}")


def prompt_was_cut(
    request: GenerateRequest | ChatRequest, reply: InferenceReply, *, context_length: int | None = None
) -> bool:
    """Return whether the server truncated the prompt.

    Args:
        request: its ``options.num_ctx`` is the size of the context, if set.
        reply: the whole answer.
        context_length: another limit of the context, in tokens: the length the model was trained for (``/api/show``),
            which no server exceeds, or the one that ``/api/ps`` reports for a loaded model (0.10). The smaller of this
            and ``options.num_ctx`` counts.

    Returns:
        True if nothing else explains the numbers; False otherwise, and if the size of the context is not known.
    """
    options = request.options
    known = [size for size in ((options.num_ctx if options else None), context_length) if size is not None and size > 0]
    count = reply.prompt_eval_count
    if not known or not count:
        return False
    window = min(known)
    if count >= window:
        return True
    length = _length(request)
    keep = options.num_keep if options and options.num_keep is not None else NUM_KEEP
    halved = keep + (window - keep) // 2
    if abs(count - halved) <= 2 and length > count * LONG_TOKEN:
        return True
    return length > window * LONGEST_TOKEN


def oversized_context(num_ctx: int | None, trained: int | None) -> str | None:
    """Return a warning if a request wants a larger context than the model was trained for; else, or if unknown, None.

    Args:
        num_ctx: tokens that the request wants.
        trained: tokens that the model was trained for.
    """
    if num_ctx is None or trained is None or num_ctx <= trained:
        return None
    return (
        f"options.num_ctx is {num_ctx}, and the model was trained for {trained}: the context has {trained} tokens, and "
        "what is longer does not fit, whatever the option says"
    )


def _length(request: GenerateRequest | ChatRequest) -> int:
    """Return the length of the prompt in characters. A run of one character (blanks, rulers) counts as four."""
    if isinstance(request, ChatRequest):
        texts = [text for message in request.messages for text in (message.content, message.thinking or "")]
    else:
        texts = [request.system or "", request.prompt, request.suffix or ""]
    return sum(len(_RUN.sub(r"\1\1\1\1", text)) for text in texts)
