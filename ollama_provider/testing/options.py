"""Options, as `api.Options.FromMap` reads them: unknown names are ignored, a wrong type is an error."""

from collections.abc import Mapping

from ollama_provider.testing.go import Json

_INTEGERS = frozenset(
    {
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "draft_num_predict",
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
    }
)
_FLOATS = frozenset(
    {"min_p", "top_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")


class WrongTypeError(ValueError):
    """An option has the wrong type; the text is the server's, which answers it with status 500."""


def read_options(given: Mapping[str, Json]) -> dict[str, Json]:
    """Keep the options the server knows; `null` is as good as absent.

    Raises:
        WrongTypeError: As the class says.
    """
    known: dict[str, Json] = {}
    for name, value in given.items():
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS:
            if not is_number:
                raise WrongTypeError(f'option "{name}" must be of type integer')
            known[name] = int(value)
        elif name in _FLOATS:
            if not is_number:
                raise WrongTypeError(f'option "{name}" must be of type float32')
            known[name] = float(value)
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise WrongTypeError(f'option "{name}" must be of type boolean')
            known[name] = value
        elif name == "stop":
            if not isinstance(value, list):
                raise WrongTypeError(f'option "{name}" must be of type array')
            if not all(isinstance(item, str) for item in value):
                raise WrongTypeError(f'option "{name}" must be of an array of strings')
            known[name] = value
    return known


def reloading(options: Mapping[str, Json], num_ctx: int) -> dict[str, Json]:
    """The options that only a reload can change.

    Args:
        options: Those of the model and the request together.
        num_ctx: The server's default context.
    """
    settings = {
        name: options[name] for name in _RELOADING if name in options and not (name == "num_gpu" and options[name] < 0)
    }
    return {"num_ctx": num_ctx, **settings}
