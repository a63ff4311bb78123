"""Name the kind of an unexpected file by its first bytes, for error texts only."""

from __future__ import annotations

HEAD_BYTES = 512
READABLE = "JPEG, PNG, WEBP and BMP pictures are read"
PICTURE_HINT = "save it as JPEG, PNG, WEBP or BMP"
VIDEO_HINT = "for a video, use: vitedge stream"

_PICTURES = (
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"),
    (b"MM\0+", "a TIFF picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\0\0\1\0", "an icon"),
    (b"v/1\1", "an OpenEXR picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
)
_ARCHIVES = ((b"7z\xbc\xaf", "a 7z archive"), (b"Rar!", "a RAR archive"), (b"\x28\xb5\x2f\xfd", "a Zstandard archive"))
_BLANKS = b"\xef\xbb\xbf \t\r\n"  # the mark of UTF-8 among them
_BRANDS = {b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"mif1": "a HEIF picture", b"avif": "an AVIF picture"}


def is_web_page(head: bytes) -> bool:
    """Whether a file or an answer with this beginning is HTML."""
    return head.lstrip(_BLANKS).lower().startswith((b"<!doctype html", b"<html"))


def kind_of_file(head: bytes) -> tuple[str, str]:
    """Return (a file's kind, a hint), by its first bytes; both are empty where the kind is unknown."""
    text = head.lstrip(_BLANKS).lower()
    if not head:
        return "empty", "copy it again"
    if is_web_page(head):
        return "a web page", "download the file itself: a login page or an error page was saved in its place"
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "an SVG drawing", PICTURE_HINT
    if head[4:8] == b"ftyp":
        picture = _BRANDS.get(head[8:12])
        return (picture, PICTURE_HINT) if picture else ("a video", VIDEO_HINT)
    if head.startswith(b"\x1aE\xdf\xa3") or (head.startswith(b"RIFF") and head[8:12] == b"AVI "):
        return "a video", VIDEO_HINT
    for signatures, hint in ((_PICTURES, PICTURE_HINT), (_ARCHIVES, "unpack it, or make a .zip or .tar of it")):
        for signature, kind in signatures:
            if head.startswith(signature):
                return kind, hint
    return "", ""
