"""From the bytes of a text file to its lines, in bounded memory.

`Text` is a seekable binary stream with the encoding that was found or asked for. Lines end at LF, CRLF or CR, as the
csv module and most editors see them. What cannot be decoded is refused by line and byte, or replaced and counted.
"""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from models.errors import Invalid, Problem

LONGEST_LINE = 16 * 1024**2
"""Characters of one line, and of one row that spans several."""

_CHUNK = 256 * 1024
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Text encodings by Python's book, but not of any file: they run escapes, or take quadratic time.
_NO_FILE_IS_IN = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}


class LineError(Exception):
    """A line that nothing after it can be trusted to be read from."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True)
class Text:
    """A stream of encoded text. `replace`: what cannot be decoded becomes U+FFFD."""

    stream: BinaryIO
    encoding: str
    replace: bool = False

    @classmethod
    def of(cls, stream: BinaryIO, encoding: str | None, *, replace: bool = False) -> "Text":
        """In `encoding`, or what a byte order mark says, or UTF-8. Raises `Invalid` (code `bad_encoding`)."""
        stream.seek(0)
        start = stream.read(4)
        if encoding is None:
            return cls(
                stream, next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8"), replace
            )
        return cls(stream, _codec(encoding), replace)

    @contextmanager
    def opened(self) -> Iterator["Lines"]:
        """Its lines from the first on. Leaving gives the stream back, open.

        Inside, what cannot be decoded is `Invalid` (code `bad_encoding`), with the line and the byte.
        """
        self.stream.seek(0)
        decoded = io.TextIOWrapper(
            self.stream, self.encoding, errors="replace" if self.replace else "strict", newline=""
        )
        try:
            yield Lines(decoded)
        except UnicodeError as error:  # UTF-16 says a plain UnicodeError where the byte order mark is missing
            raise self._undecodable() from error
        finally:
            decoded.detach()

    def replaced(self) -> int:
        """How many characters are replaced: what replacing writes and ignoring does not."""
        if not self.replace:
            return 0
        make = codecs.getincrementaldecoder(self.encoding)
        replacing, ignoring = make("replace"), make("ignore")
        self.stream.seek(0)
        count = 0
        while chunk := self.stream.read(_CHUNK):
            count += len(replacing.decode(chunk)) - len(ignoring.decode(chunk))
        return count + len(replacing.decode(b"", final=True)) - len(ignoring.decode(b"", final=True))

    def _undecodable(self) -> Invalid:
        line, offset, what = self._first_undecodable()
        message = (
            f"line {line}: {what} at byte {offset} of the file is not {self.encoding.removesuffix('-sig').upper()}"
        )
        return Invalid(
            message,
            code="bad_encoding",
            hint="name the encoding in the form field encoding (such as latin-1 or cp1252), save the file as UTF-8, "
            "or send errors=replace to put U+FFFD where a character cannot be read",
            problems=[Problem("/file", message, "bad_encoding")],
        )

    def _first_undecodable(self) -> tuple[int, int, str]:
        """Line, byte offset, and the bytes in hexadecimal. Reads the file again."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        self.stream.seek(0)
        lines, offset, carriage_return = 1, 0, False
        chunk = b""
        while True:
            pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
            chunk = self.stream.read(4096)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(self.encoding, "ignore")
                at = offset - pending + error.start
                bad = error.object[error.start : error.end][:4]
                return lines + _breaks(before, after_return=carriage_return), at, f"{bad.hex(' ')} (hexadecimal)"
            except UnicodeError:
                return lines, offset, "the beginning"
            lines += _breaks(text, after_return=carriage_return)
            carriage_return = text.endswith("\r") if text else carriage_return
            offset += len(chunk)
            if not chunk:
                return lines, offset, "the end"


class Lines:
    """An iterator over lines, with their ends. Knows `number`, the line that it gave last, from 1."""

    def __init__(self, decoded: io.TextIOWrapper) -> None:
        self._decoded = decoded
        self.number = 0
        self._in_row = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._decoded.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._in_row += len(line)
        if self._in_row > LONGEST_LINE:
            raise LineError(self.number, f"a row of more than {LONGEST_LINE // 1024**2} million characters")
        if "\0" in line:
            raise LineError(self.number, "a NUL character; is this a text file?")
        return line

    def next_row(self) -> None:
        """The rows so far are complete: what comes is measured anew."""
        self._in_row = 0


def _codec(encoding: str) -> str:
    name = encoding.strip()
    try:
        known = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}", name))
        # Refuses codecs that are not of text, such as zip.
        io.TextIOWrapper(io.BytesIO(), name if known else "undefined").detach()
        canonical = codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        canonical = "undefined"
    if canonical.replace("_", "-") in _NO_FILE_IS_IN:
        raise Invalid.of(
            [
                Problem(
                    "/encoding",
                    f"{name[:40]!r} is not a text encoding that Python knows, such as utf-8 or cp1252",
                    "bad_encoding",
                )
            ]
        )
    return "utf-8-sig" if canonical == "utf-8" else canonical


def _breaks(text: str, *, after_return: bool) -> int:
    """Line ends in `text`; the LF of a CRLF that began in the chunk before is no second one."""
    count = text.count("\n") + text.count("\r") - text.count("\r\n")
    return count - (after_return and text.startswith("\n"))
