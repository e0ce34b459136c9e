#!/usr/bin/env python3
"""Draws what `mllama demo` prints as a picture for the README: draw_terminal.py < output > terminal.png

Needs Pillow and the font DejaVu Sans Mono (Debian: fonts-dejavu-core). Understands the colour codes that the
demo uses: 24-bit foreground and background, and reset.
"""
import re
import sys

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 9, 18  # of a character, pixels
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"
PAPER, INK = (24, 26, 31), (215, 218, 224)
COLUMNS = 100


def cells(text):
    """Lines of (character, foreground, background)."""
    lines, line, fore, back = [], [], INK, PAPER
    for code, char in re.findall(r"\x1b\[([0-9;]*)m|([\s\S])", text):
        if char == "\n":
            lines.append(line)
            line = []
        elif char:
            line.append((char, fore, back))
        else:
            numbers = [int(n) for n in code.split(";") if n]
            if numbers[:2] == [38, 2]:
                fore = tuple(numbers[2:5])
            elif numbers[:2] == [48, 2]:
                back = tuple(numbers[2:5])
            else:
                fore, back = INK, PAPER
    return lines + ([line] if line else [])


def wrap(lines):
    for line in lines:
        yield line[:COLUMNS]
        for start in range(COLUMNS, len(line), COLUMNS):
            yield line[start : start + COLUMNS]


def main():
    lines = list(wrap(cells(sys.stdin.buffer.read().decode())))
    image = Image.new("RGB", ((COLUMNS + 2) * WIDTH, (len(lines) + 2) * HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(FONT, 15)
    for row, line in enumerate(lines):
        for column, (char, fore, back) in enumerate(line):
            x, y = (column + 1) * WIDTH, (row + 1) * HEIGHT
            if char == "\u2580":  # the upper half in the foreground, the lower in the background
                draw.rectangle((x, y, x + WIDTH - 1, y + HEIGHT // 2 - 1), fill=fore)
                draw.rectangle((x, y + HEIGHT // 2, x + WIDTH - 1, y + HEIGHT - 1), fill=back)
            elif char != " ":
                draw.text((x, y), char, font=font, fill=fore)
    image.save(sys.stdout.buffer, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
