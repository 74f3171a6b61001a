"""Exceptions that libraries raise of files that are not as they were written."""

import struct
import tokenize
import zipfile
import zlib

# What zipfile and numpy raise on damaged archives, between them.
DAMAGED_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, ValueError, EOFError, RuntimeError, SyntaxError),
    *(NotImplementedError, KeyError, TypeError, MemoryError, OverflowError, struct.error, IndexError),
)
