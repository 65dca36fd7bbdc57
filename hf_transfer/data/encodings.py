"""The encoding of a text file: its mark, bytes that contradict the setting, and which setting would read it."""

import codecs
import hashlib
from collections.abc import Iterator
from pathlib import Path

from hf_transfer.errors import UserError, user_error

# The marks at the beginning of a file; that of UTF-32 begins with the one of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What a file that is not valid in its encoding is tried with. The last one reads anything.
EUROPEAN = " for western European languages"
USUAL = {"utf-8": "", "cp1252": EUROPEAN, "latin-1": EUROPEAN}
WITHOUT_MARK = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
WIDE = ("utf-16", "utf-32")
# The share of zero bytes below which UTF-8 is damaged rather than an encoding of several bytes.
FEW_ZEROS = 1 / 8
BLOCK = 1 << 20


def encoding_of(file: Path, wanted: str) -> tuple[str, list[str]]:
    """The encoding to read a file with, and a note if it is not the one that is wanted.

    Args:
        file: of text.
        wanted: by the settings; the mark at the beginning of the file overrides it.

    Raises:
        UserError: the file looks like UTF-16 or UTF-32 without a mark, and another encoding is wanted.
    """
    with file.open("rb") as opened:
        head = opened.read(4096)
    marked = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    name = codecs.lookup(wanted).name
    if marked is not None:
        same = name.replace("-", "").startswith(marked.removesuffix("-sig").replace("-", ""))
        shown = marked.removesuffix("-sig").upper()
        return marked, [] if same else [f"{file.name} is read as {shown}, as the mark at its beginning says."]
    likely = _without_mark(head) if b"\0" in head else None
    if name.startswith(WIDE):
        return _wide(file, name, likely, head), []
    if likely is not None:
        raise user_error(
            expected=f"text in {wanted} in {file}",
            found=f"line 1: every other byte is zero, as in {likely.upper()} without a mark",
            do=f"add --encoding {likely}, or save the file as UTF-8",
        )
    return name, []


def _wide(file: Path, wanted: str, likely: str | None, head: bytes) -> str:
    """The encoding of a file without a mark that is said to be UTF-16 or UTF-32."""
    if b"\0" not in head:
        raise user_error(
            expected=f"text in {wanted} in {file}",
            found="no byte that is zero, as separators and ends of lines have there",
            do="leave out --encoding, or name another",
        )
    if likely is not None and not likely.startswith(wanted):
        raise user_error(
            expected=f"text in {wanted} in {file}",
            found=f"text in {likely.upper()}",
            do=f"use --encoding {likely}",
        )
    if wanted in ("utf-16", "utf-32"):
        # Without a mark either order of bytes is possible.
        return likely if likely is not None and likely.startswith(wanted) else f"{wanted}-le"
    return wanted


def _is_utf_8(head: bytes) -> bool:
    """Whether bytes are UTF-8, apart from a character that is cut off at their end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _without_mark(head: bytes) -> str | None:
    """The encoding of several bytes per character in which the beginning of a file is plain text, if there is one."""
    if head.count(b"\0") < len(head) * FEW_ZEROS and _is_utf_8(head):
        return None
    for encoding in reversed(WITHOUT_MARK):
        width = 4 if "32" in encoding else 2
        text = head[: len(head) - len(head) % width].decode(encoding, errors="replace")
        plain = sum(sign.isascii() and sign != "\0" for sign in text)
        # Texts of other scripts have at least separators and ends of lines.
        if "\0" not in text and "\ufffd" not in text[:-1] and plain and ("\n" in text or "\r" in text):
            return encoding
    return None


def content_digest(file: Path, encoding: str) -> str:
    """A hash of a text file.

    Raises:
        UserError: it has zero bytes, which no text has.
    """
    digest, lines = hashlib.sha256(), 1
    may_have_zeros = encoding.startswith(WIDE)
    for block in _blocks(file):
        if not may_have_zeros and (place := block.find(b"\0")) >= 0:
            raise user_error(
                expected=f"text in {encoding} in {file}",
                found=f"line {lines + _ends(block[:place])}: a byte with the value 0, which no text has",
                do="save the file again as UTF-8, or remove that byte",
            )
        lines += 0 if may_have_zeros else _ends(block)
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            yield block


def _ends(block: bytes) -> int:
    # A file has either one or the other as a rule; those of old Macs have carriage returns alone.
    return block.count(b"\n") or block.count(b"\r")


def read_text(file: Path, wanted: str) -> str:
    """The whole text of a file, with line feeds at the ends of lines, as Python reads text.

    Args:
        file: of text.
        wanted: its encoding by the settings; see `encoding_of`.

    Raises:
        UserError: it is in another encoding.
    """
    encoding, _ = encoding_of(file, wanted)
    if (error := undecodable(file, encoding)) is not None:
        raise error
    with file.open(encoding=encoding) as opened:
        return opened.read()


def undecodable(file: Path, encoding: str) -> UserError | None:
    """The error that names the first bytes of a file that are not valid in an encoding; None: all are."""
    content = file.read_bytes()
    try:
        # Not line by line: in UTF-16 the byte of a line feed is half of a character.
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line, column = _position(content[: error.start], encoding)
        return user_error(
            expected=f"text in {encoding} in {file}",
            found=f"line {line}: byte 0x{content[error.start]:02x} at column {column}",
            do=f"name the encoding in which it was saved{_example(content)}, or save it as UTF-8",
        )
    return None


def _position(before: bytes, encoding: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows these bytes."""
    wide = encoding.startswith(WIDE)
    text = before.decode(encoding if wide else "latin-1", errors="ignore")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return len(lines), len(lines[-1]) + 1


def _example(content: bytes) -> str:
    """The setting with which a file can be read, in the middle of a sentence."""
    for encoding, remark in USUAL.items():
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return f": --encoding {encoding}{remark}"
    return ""
