"""Compressed files, decompressed while they are read."""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from ollama_provider.batch.errors import InputError

_BUFFER = 1 << 16


@contextmanager
def decompressed(file: BinaryIO, path: str, suffix: str) -> Iterator[BinaryIO]:
    """Open the content of a file; *suffix* says how it is compressed, and is empty for one that is not.

    Raises:
        InputError: the file is damaged, it ends in the middle, or what decompresses it is not installed.
    """
    if not suffix:
        yield file
        return
    try:
        with io.BufferedReader(cast("Any", _OPENERS[suffix](file)), _BUFFER) as content:
            yield cast("BinaryIO", content)
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow, which is not installed, or Python 3.14: pip install "
            "'airflow-provider-ollama[parquet]'."
        ) from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # bz2 and pyarrow have no class of their own. An error of the disk has a number.
        if error.errno is None and str(error).startswith(_TEXTS):
            raise _damaged(path, error) from error
        raise
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise _damaged(path, error) from error


#: How the errors of bz2 and of pyarrow for damaged files begin.
_TEXTS = ("Invalid data stream", "ZSTD decompress", "Truncated compressed stream")


def _damaged(path: str, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or not complete, so it cannot be decompressed: {error}.")


def _open_zstd(file: BinaryIO) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(file)
    import pyarrow as pa  # heavy, and an extra

    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
