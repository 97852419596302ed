"""Compressed streams: gzip, and zstd if the package zstandard is installed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Literal, cast

from peon.persistence.errors import DamagedFile, PersistenceError

Compression = Literal["gzip", "zstd"]

GZIP_LEVEL = 6
"""Of 9: level 9 takes twice as long, and saves 1 % of a log."""

COPIED_BYTES = 1 << 20
"""Bytes that are copied from stream to stream at once."""

_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}

_FIRST_BYTES: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(path: Path) -> Compression | None:
    """Returns the compression that the name of a file asks for."""
    return _SUFFIXES.get(path.suffix)


@contextmanager
def compressing(file: BinaryIO, compression: Compression | None) -> Iterator[BinaryIO]:
    """Yields a stream that writes to the file; with `None`, it is the file. The file stays open."""
    if compression is None:
        yield file
    elif compression == "gzip":
        # Without name and time, so that the same content gives the same file.
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as compressed:
            yield cast(BinaryIO, compressed)
    else:
        compressor = _zstandard().ZstdCompressor(write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as compressed:
            yield compressed


@contextmanager
def decompressing(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yields a stream that reads the file from its beginning; the content tells whether it is compressed.

    Args:
        file: One that can be read again from its beginning. It stays open.
        name: What errors call it.

    Raises:
        DamagedFile: The block has met damage.
        PersistenceError: zstandard is not installed.
    """
    file.seek(0)
    first = file.read(4)
    file.seek(0)
    compression = next((kind for mark, kind in _FIRST_BYTES.items() if first.startswith(mark)), None)
    if compression is None:
        yield file
        return
    errors: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
    if compression == "gzip":
        stream = cast(io.RawIOBase, gzip.GzipFile(fileobj=file, mode="rb"))
    else:
        errors = (_zstandard().ZstdError,)
        stream = _zstandard().ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
    try:
        with io.BufferedReader(stream, COPIED_BYTES) as decompressed:
            yield cast(BinaryIO, decompressed)
    except errors as error:
        raise DamagedFile(f"{name} is cut or damaged: its {compression} data ends early or is wrong") from error


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise PersistenceError(
            "zstandard is not installed: install peon with its extra 'zstd', or use gzip (.gz)"
        ) from error
    return zstandard
