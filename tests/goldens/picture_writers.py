"""Writers of PNG, GIF and BMP files in the forms that Pillow itself does not write: every colour type and depth, interlaced
and filtered PNG, extra chunks; BMP of every header and depth, run-length coded; GIF with a partial first frame."""
import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_row(row, depth):
    """row (width, samples) of integers as big-endian bits."""
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def filter_row(kind, row, above, step):
    out = bytearray([kind])
    for i, value in enumerate(row):
        a = row[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        predicted = [0, a, b, (a + b) // 2, paeth(a, b, c)][kind]
        out.append((value - predicted) & 255)
    return bytes(out)


def png(samples, depth, colour, before=(), after=(), interlaced=False, filters=True):
    """samples (height, width, SAMPLES[colour]); before, after: (kind, data) chunks around the image data."""
    height, width = samples.shape[:2]
    step = max(1, SAMPLES[colour] * depth // 8)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    raw = b""
    for x0, y0, dx, dy in passes:
        part = samples[y0::dy, x0::dx]
        if part.shape[0] == 0 or part.shape[1] == 0:
            continue
        above = bytes(len(pack_row(part[0], depth)))
        for y, row in enumerate(part):
            packed = pack_row(row, depth)
            raw += filter_row(y % 5 if filters else 0, packed, above, step)
            above = packed
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = zlib.compress(raw, 9)
    half = len(data) // 2
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    for kind, content in before:
        out += chunk(kind, content)
    out += chunk(b"IDAT", data[:half]) + chunk(b"IDAT", data[half:])
    for kind, content in after:
        out += chunk(kind, content)
    return out + chunk(b"IEND", b"")


def exif(orientation, order="<", kind=3, tag=0x0112):
    """A TIFF block with one entry."""
    form = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}[kind]
    value = struct.pack(order + form, orientation).ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHI", 8, 1, tag, kind, 1) + value + bytes(4)


def bmp(rows, bits, header=40, palette=None, compression=0, masks=(), top_down=False, colours=0, data=None):
    """rows (height, width): palette indices or whole pixels; data: run-length coded rows instead."""
    height, width = rows.shape
    body = b""
    for row in rows if top_down else rows[::-1]:
        if bits <= 8:
            packed = pack_row(row.reshape(-1, 1), bits)
        else:
            packed = b"".join(int(p).to_bytes(bits // 8, "little") for p in row)
        body += packed + bytes(-len(packed) % 4)
    if data is not None:
        body = data
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIIIII", header, width, -height if top_down else height, 1, bits, compression,
                           len(body), 2835, 2835, colours, 0)
        info += b"".join(struct.pack("<I", m) for m in masks)
        info = info.ljust(header, b"\0")
    table = b""
    for red, green, blue in [] if palette is None else palette:
        table += bytes([blue, green, red]) + (b"" if header == 12 else b"\0")
    offset = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + table + body


def lzw(indices, bits):
    """GIF's compression of a sequence of indices."""
    clear, end = 1 << bits, (1 << bits) + 1
    codes, table, size, word = [(clear, bits + 1)], {(i,): i for i in range(clear)}, bits + 1, ()
    next_code = clear + 2
    for index in indices:
        longer = word + (int(index),)
        if longer in table:
            word = longer
            continue
        codes.append((table[word], size))
        if next_code < 4096:
            table[longer] = next_code
            next_code += 1
            if next_code > 1 << size and size < 12:
                size += 1
        else:
            codes.append((clear, size))
            table, size, next_code = {(i,): i for i in range(clear)}, bits + 1, clear + 2
        word = (int(index),)
    if word:
        codes.append((table[word], size))
        next_code += 1
        if next_code > 1 << size and size < 12:
            size += 1
    codes.append((end, size))
    number, shift = 0, 0
    for code, width in codes:
        number |= code << shift
        shift += width
    return number.to_bytes((shift + 7) // 8, "little")


def blocks(data):
    return b"".join(bytes([len(data[i:i + 255])]) + data[i:i + 255] for i in range(0, len(data), 255)) + b"\0"


def gif(indices, bits, screen=None, at=(0, 0), palette=None, local=None, transparent=None, interlaced=False,
        background=0):
    """indices (height, width); palettes of 2^k colours."""
    height, width = indices.shape
    screen = screen or (width, height)

    def flags(table):
        return 0 if table is None else 0x80 | (len(table).bit_length() - 2)

    def table_bytes(table):
        return b"" if table is None else bytes(np.asarray(table, np.uint8).reshape(-1))

    out = b"GIF89a" + struct.pack("<HHBBB", *screen, flags(palette), background, 0) + table_bytes(palette)
    if transparent is not None:
        out += b"!\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    out += b"," + struct.pack("<HHHHB", *at, width, height, flags(local) | (0x40 if interlaced else 0))
    out += table_bytes(local)
    rows = list(range(height))
    if interlaced:
        rows = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(start, height, step)]
    return out + bytes([max(bits, 2)]) + blocks(lzw(indices[rows].reshape(-1), max(bits, 2))) + b";"
