"""Read from a JPEG's markers (ITU-T T.81) its decoder's memory, and the least length of its data."""

from __future__ import annotations

from typing import NamedTuple

_ALONE = (0x01, 0xD8, *range(0xD0, 0xD8))  # markers without a length: TEM, SOI, RST0 to RST7
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC lie among the SOF markers
_START_OF_SCAN = 0xDA
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # Huffman-coded


class JpegHeader(NamedTuple):
    """The header of a JPEG up to its first scan."""

    components: tuple[tuple[int, int], ...]  # sampling factors (across, down) of each
    several_scans: bool  # then the decoder keeps all coefficients until the last one
    block_bits: int  # the least number of bits for each 8×8 block of each component; 0: arithmetic coding

    def samples(self, pixels: int) -> float:
        """Return the samples of all components; those of colour may have fewer than the picture has pixels."""
        areas = [across * down for across, down in self.components]
        return pixels * sum(areas) / max([1, *areas])


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Read the header; None where the data end before the first scan."""
    frame = 0
    components: tuple[tuple[int, int], ...] = ()
    at = 0
    while at + 4 < len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0xFF, *_ALONE):
            at += 1 if data[at] != 0xFF or marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            bits = 2 if frame in _SEQUENTIAL else 1 if frame == _PROGRESSIVE else 0
            return JpegHeader(components, frame not in _SEQUENTIAL or data[at + 4] < len(components), bits)
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            factors = data[at + 11 : at + 2 + length : 3]
            frame, components = marker, tuple((each >> 4, each & 15) for each in factors)
        at += 2 + length
    return None
