"""What to do about rows that failed, by the class of their error."""

from ollama_provider.api import errors

#: Errors of a batch's rows that are not of the server, and what helps better with many rows than with one request.
_ADVICE = {
    "CutPromptError": "Shorten the rows, raise options.num_ctx, or take cut prompts with on_truncation='flag'.",
    "ContextLengthError": "Shorten the rows, raise options.num_ctx, or take cut prompts with on_truncation='flag'.",
    "CutAnswerError": "Raise options.num_predict or options.num_ctx, or take cut answers with allow_cut=True.",
    "InvalidOutputError": "Read the replies: a plainer schema, an example in the prompt, or a fallback_model.",
    "IdleTimeoutError": "More time on the connection, fewer requests at a time, or a model that fits into the GPU.",
    "IncompleteReplyError": "Run the batch again. If it fails again, see the server's log and any proxy before it.",
    "BadRequestError": "The error's text says what the server does not take.",
    "RejectedReplyError": "Read the replies. Another model, or a newer Ollama, may answer properly.",
    "RenderError": "Mend the prompt's template, or the columns of these rows.",
    "BrokenRow": "Mend these rows of the input.",
    "EmptyText": "There is no vector of an empty text: fill these rows, or leave them out.",
    "ImageError": "Mend the image, or its path. It must lie in images_from.",
    "RefusedByTable": "Mend the table or the schema, and run again.",
}


def advice(error_class: str) -> str:
    """Return a sentence for a class of error; empty for an unknown one."""
    return _ADVICE.get(error_class) or _of_class(error_class)


def without_advice(error_class: str, text: str) -> str:
    """Return the text of an error without the sentence that all errors of its class end with."""
    known = _of_class(error_class)
    return text.removesuffix(f". {known}") if known else text


def _of_class(name: str) -> str:
    known = getattr(errors, name, None) if name.endswith("Error") else None
    return str(getattr(known, "advice", ""))
