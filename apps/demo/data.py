"""What the demo model is taught: pictures of handwritten numbers and of coloured shapes, and questions about them.

A sample is a short conversation. Everything is drawn afresh from a random generator, so that a model never sees the
same picture twice; the handwritten digits are scikit-learn's 1797 (8x8 pixels, 43 writers), split once and for all
into TRAIN_DIGITS and HELD_OUT_DIGITS. A held-out digit is never drawn in training.
"""
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates, zoom
from sklearn.datasets import load_digits

HELD_OUT_COUNT = 360

_digits = load_digits()
DIGIT_PICTURES = _digits.images / 16.0  # [1797, 8, 8], 0 paper .. 1 ink
DIGIT_LABELS = _digits.target  # [1797]
_order = np.random.default_rng(1797).permutation(len(DIGIT_LABELS))
HELD_OUT_DIGITS = np.sort(_order[:HELD_OUT_COUNT])
TRAIN_DIGITS = np.sort(_order[HELD_OUT_COUNT:])

COLOURS = {
    "red": (214, 40, 40), "green": (40, 160, 70), "blue": (40, 80, 210), "yellow": (240, 210, 40),
    "purple": (140, 50, 170), "orange": (245, 130, 30), "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SIZES = ("small", "large")


@dataclass
class Drawing:
    """A picture and, of the same size, what stands where: (what, colour, size) as the three bytes of a pixel.

    what: 0 paper, 1 + digit, 11 + shape; colour and size count from 1 and are 0 where there is no shape. Training tells
    the model's eyes what every patch shows; the finished model gets the picture alone.
    """
    picture: Image.Image
    labels: Image.Image


def parts_of(turn):
    """What the user says in a turn, in order: Drawings and texts.

    Text between two pictures sees the first only, text after them the second only, and nothing tells apart pictures that
    follow each other directly. So each of several pictures is followed by a few words, in which the model notes it.
    """
    if len(turn.images) < 2:
        return [*turn.images, turn.question]
    first, second = turn.images
    return [first, "This is the first.", second, "This is the second. " + turn.question]


WHATS, COLOUR_LABELS, SIZE_LABELS = 11 + len(SHAPES), 1 + len(COLOURS), 1 + len(SIZES)


@dataclass
class Turn:
    """One question with its answer; `images` (Drawings) are shown just before the question."""
    question: str
    answer: str
    images: list = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- handwritten numbers

def draw_digit(rng, index, size, warp):
    """Digit `index` as ink [size, size], 0..1. With `warp` it is turned, sheared, scaled, shifted and bent a little.

    For every pixel of the result we compute the place in the 8x8 original that it shows and read the ink there.
    """
    steps = (np.arange(size) + 0.5) / size - 0.5  # pixel centres, -0.5 .. 0.5 of the cell
    y, x = np.meshgrid(steps, steps, indexing="ij")
    if warp:
        angle, shear = rng.normal(0, 0.1), rng.normal(0, 0.1)
        scale_x, scale_y = rng.uniform(0.95, 1.15, 2)
        shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
        turned_x = np.cos(angle) * x - np.sin(angle) * y
        turned_y = np.sin(angle) * x + np.cos(angle) * y
        x = scale_x * (turned_x + shear * turned_y) + shift_x
        y = scale_y * turned_y + shift_y
        bend_x, bend_y = (zoom(rng.normal(0, 0.02, (4, 4)), size / 4, order=1) for _ in range(2))
        x, y = x + bend_x, y + bend_y
    source = DIGIT_PICTURES[index]
    ink = map_coordinates(source, [y * 8 + 3.5, x * 8 + 3.5], order=3 if not warp or rng.random() < 0.5 else 1)
    ink = np.clip(ink, 0, 1)
    if warp:
        ink = np.clip(ink * rng.uniform(0.8, 1.4), 0, 1) ** rng.uniform(0.7, 1.4)
    return ink


def draw_number(rng, rows, size, warp):
    """Rows of digits (each row a list of indices), a digit `size` pixels high and wide; dark ink on light paper."""
    margin = int(rng.integers(0, 1 + size // 6))
    width = max(len(row) for row in rows) * size + 2 * margin
    ink = np.zeros((len(rows) * size + 2 * margin, width))
    labels = np.zeros((*ink.shape, 3), np.uint8)
    inner = size // 8  # the label leaves a rim, where neighbours meet
    for r, row in enumerate(rows):
        for c, index in enumerate(row):
            top, left = margin + r * size, margin + c * size
            ink[top:top + size, left:left + size] = draw_digit(rng, index, size, warp)
            labels[top + inner:top + size - inner, left + inner:left + size - inner, 0] = 1 + DIGIT_LABELS[index]
    paper_colour, ink_colour = rng.uniform(190, 255, 3), rng.uniform(0, 90, 3)
    pixels = paper_colour + (ink_colour - paper_colour) * ink[..., None]
    pixels = pixels + rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return Drawing(Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8)), Image.fromarray(labels))


def text_of(row):
    return "".join(str(DIGIT_LABELS[i]) for i in row)


def number_picture(rng, pool, warp=True, length=None):
    """One number of 1 to 4 digits, or two rows of 2 digits. Returns (drawing, rows).

    Small pictures fill one tile, wide ones up to four in a row; two rows and large single digits fill 2 x 2 tiles.
    """
    if length is None:
        length = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.2, 0.2, 0.3]))
    two_rows = length == 2 and rng.random() < 0.4
    largest = 104 if length == 1 and rng.random() < 0.4 else 54
    size = int(rng.integers(36, largest + 1))
    rows = [list(rng.choice(pool, length)) for _ in range(2 if two_rows else 1)]
    return draw_number(rng, rows, size, warp), rows


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def reading_turn(rng, rows):
    texts = [text_of(row) for row in rows]
    if len(texts) == 2:
        question = pick(rng, ["What does the image show?", "Which numbers are these?", "Read the numbers."])
        return Turn(question, f"The numbers {texts[0]} and {texts[1]}.")
    if len(texts[0]) == 1:
        question = pick(rng, ["What does the image show?", "Which digit is this?", "Read the digit."])
        return Turn(question, f"The digit {texts[0]}.")
    question = pick(rng, ["What does the image show?", "Which number is this?", "Read the number."])
    return Turn(question, f"The number {texts[0]}.")


def number_turns(rng, rows):
    """Every question that makes sense about a picture of numbers, the reading question first."""
    turns = [reading_turn(rng, rows)]
    if len(rows) == 2:
        upper, lower = text_of(rows[0]), text_of(rows[1])
        turns.append(Turn("Which number is at the top?", f"{upper}."))
        turns.append(Turn("Which number is at the bottom?", f"{lower}."))
        return turns
    text = text_of(rows[0])
    if len(text) > 1:
        turns.append(Turn("How many digits are there?", f"{len(text)}."))
        turns.append(Turn("What is the first digit?", f"{text[0]}."))
        turns.append(Turn("What is the last digit?", f"{text[-1]}."))
    turns.append(Turn("Is it even or odd?", "Odd." if int(text[-1]) % 2 else "Even."))
    return turns


# ------------------------------------------------------------------------------------------------ scenes of shapes

@dataclass
class Thing:
    shape: str
    colour: str
    size: str
    x: float  # centre, in pixels
    y: float
    radius: float

    def name(self):
        return f"{self.size} {self.colour} {self.shape}"


def place_things(rng, count, width, height):
    """`count` shapes that do not touch, with no doubt which is further left; None if they found no room."""
    unit, things = min(width, height), []
    for _ in range(60):
        size = pick(rng, SIZES)
        radius = unit * (rng.uniform(0.13, 0.16) if size == "small" else rng.uniform(0.23, 0.28))
        x, y = (rng.uniform(radius + 1, side - radius - 1) for side in (width, height))
        if all(np.hypot(x - t.x, y - t.y) > 1.1 * (radius + t.radius) + 1 and abs(x - t.x) > 0.2 * unit for t in things):
            things.append(Thing(pick(rng, SHAPES), pick(rng, list(COLOURS)), size, x, y, radius))
        if len(things) == count:
            return sorted(things, key=lambda t: t.x)
    return None


def outline(thing, scale):
    """Corners of every shape but the circle, drawn at `scale` times the size."""
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape == "square":
        s = 0.85 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if thing.shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    if thing.shape == "diamond":
        return [(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)]
    a = 0.32 * r  # cross: half the width of an arm
    return [(x - a, y - r), (x + a, y - r), (x + a, y - a), (x + r, y - a), (x + r, y + a), (x + a, y + a),
            (x + a, y + r), (x - a, y + r), (x - a, y + a), (x - r, y + a), (x - r, y - a), (x - a, y - a)]


def draw_scene(rng, things, width, height):
    scale = 4  # drawn large and shrunk, for smooth edges
    paper = tuple(int(v) for v in rng.integers(225, 256, 3))
    picture = Image.new("RGB", (width * scale, height * scale), paper)
    pen = ImageDraw.Draw(picture)
    for t in things:
        colour = tuple(int(np.clip(v + rng.integers(-14, 15), 0, 255)) for v in COLOURS[t.colour])
        if t.shape == "circle":
            pen.ellipse([(t.x - t.radius) * scale, (t.y - t.radius) * scale,
                         (t.x + t.radius) * scale, (t.y + t.radius) * scale], fill=colour)
        else:
            pen.polygon(outline(t, scale), fill=colour)
    labels = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(labels)
    for t in things:
        label = (11 + SHAPES.index(t.shape), 1 + list(COLOURS).index(t.colour), 1 + SIZES.index(t.size))
        pen.ellipse([t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius], fill=label)
    return Drawing(picture.resize((width, height), Image.Resampling.BOX), labels)


def scene_picture(rng, count=None):
    """Returns (drawing, things from left to right). Square, wide and tall pictures of one to four tiles."""
    while True:
        n = count or int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
        format_ = rng.random()
        side = int(rng.integers(44, 57))
        if format_ < 0.4:
            width = height = side
        elif format_ < 0.7:
            width, height = int(side * rng.uniform(1.2, 3.0)), side
        elif format_ < 0.8:
            width, height = side, int(side * rng.uniform(1.2, 2.0))
        else:
            width, height = (int(v) for v in rng.integers(70, 113, 2))
        things = place_things(rng, n, width, height)
        if things:
            return draw_scene(rng, things, width, height), things


def list_of(names):
    """"a b", "a b and a c", "a b, a c and a d", with a capital and a full stop."""
    names = [f"a {n}" for n in names]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return text[0].upper() + text[1:] + "."


def scene_turns(rng, things):
    """Every question that makes sense about a scene, the description first; shapes are named from left to right."""
    turns = [Turn(pick(rng, ["What does the image show?", "What is in the picture?", "Describe the image."]),
                  list_of([t.name() for t in things])),
             Turn(pick(rng, ["How many shapes are there?", "Count the shapes."]), f"{len(things)}.")]
    shape = pick(rng, [t.shape for t in things] + list(SHAPES[:2]))
    plural = "crosses" if shape == "cross" else shape + "s"
    turns.append(Turn(f"How many {plural} are there?", f"{sum(t.shape == shape for t in things)}."))
    colour = pick(rng, [t.colour for t in things] + ["red"])
    turns.append(Turn(f"How many {colour} shapes are there?", f"{sum(t.colour == colour for t in things)}."))
    shapes, colours = [t.shape for t in things], [t.colour for t in things]
    for t in things:
        if shapes.count(t.shape) == 1:
            turns.append(Turn(f"What colour is the {t.shape}?", f"{t.colour.capitalize()}."))
        if colours.count(t.colour) == 1:
            turns.append(Turn(f"What is the {t.colour} shape?", f"A {t.size} {t.shape}."))
    if len(things) > 1:
        turns.append(Turn(pick(rng, ["Which is to the left?", "Which shape is on the left?"]), f"The {things[0].name()}."))
        turns.append(Turn(pick(rng, ["Which is to the right?", "Which shape is on the right?"]), f"The {things[-1].name()}."))
        by_height = sorted(things, key=lambda t: t.y)
        gap = min(t.radius for t in things)  # closer than that, the answer would be a matter of luck
        if by_height[1].y - by_height[0].y > gap:
            turns.append(Turn("Which is at the top?", f"The {by_height[0].name()}."))
        if by_height[-1].y - by_height[-2].y > gap:
            turns.append(Turn("Which is at the bottom?", f"The {by_height[-1].name()}."))
    if len(things) == 2 and things[0].shape != things[1].shape:
        a, b = (things if rng.random() < 0.5 else things[::-1])
        turns.append(Turn(f"Is the {a.shape} to the left of the {b.shape}?", "Yes." if a.x < b.x else "No."))
    return turns


# --------------------------------------------------------------------------------------------- several pictures, text

def compared_numbers(first, second):
    if first == second:
        return f"The first shows {first}, the second {second}: they are equal."
    winner = "first" if int(first) > int(second) else "second"
    return f"The first shows {first}, the second {second}: the {winner} is larger."


def pair_conversation(rng, pool, warp=True, task=None):
    """Two pictures in one prompt, or the second a turn later."""
    task = task or pick(rng, ["compare", "compare", "later", "sum", "scenes"])
    if task == "scenes":
        (a, things_a), (b, things_b) = scene_picture(rng), scene_picture(rng)
        n, m = len(things_a), len(things_b)
        verdict = "they are equal." if n == m else f"the {'first' if n > m else 'second'} has more."
        return [Turn("Which image has more shapes?", f"The first has {n}, the second {m}: {verdict}", [a, b])]
    lengths = [1, 1] if task == "sum" else [1 + int(rng.random() < 0.3) for _ in range(2)]
    pictures, texts = [], []
    for length in lengths:
        row = list(rng.choice(pool, length))
        pictures.append(draw_number(rng, [row], int(rng.integers(36, 55)), warp))
        texts.append(text_of(row))
    larger = Turn("Which number is larger?", compared_numbers(*texts))
    if task == "compare":
        larger.images = pictures
        return [larger]
    if task == "sum":
        answer = f"The first shows {texts[0]}, the second {texts[1]}: the sum is {int(texts[0]) + int(texts[1])}."
        return [Turn("What is the sum?", answer, pictures)]
    shown = [f"The {'digit' if len(t) == 1 else 'number'} {t}." for t in texts]
    return [Turn("What does the image show?", shown[0], pictures[:1]), Turn("And this one?", shown[1], pictures[1:]), larger]


SMALL_TALK = [
    ("Hello!", "Hello! Show me a picture of a number or of some shapes."),
    ("Who are you?", "I am a tiny Mllama. I read numbers, describe shapes and add."),
    ("What can you do?", "I read numbers, describe shapes and add. Show me a picture."),
    ("Thank you!", "You are welcome."),
]


def arithmetic_turn(rng):
    a, b = (int(v) for v in rng.integers(0, 10, 2))
    if rng.random() < 0.6:
        return Turn(f"What is {a} plus {b}?", f"{a + b}.")
    a, b = max(a, b), min(a, b)
    return Turn(f"What is {a} minus {b}?", f"{a - b}.")


def text_conversation(rng, turns=6):
    return [arithmetic_turn(rng) if rng.random() < 0.85 else Turn(*pick(rng, SMALL_TALK)) for _ in range(turns)]


# --------------------------------------------------------------------------------------------- training conversations

def shuffled(rng, turns, count):
    return [turns[i] for i in rng.permutation(len(turns))[:count]]


def one_picture(rng, pool, number_share):
    return number_picture(rng, pool)[0] if rng.random() < number_share else scene_picture(rng)[0]


def picture_conversation(rng, pool, number_share):
    """Several questions about one picture: one look at it teaches several answers. Any may come first."""
    if rng.random() < number_share:
        drawing, rows = number_picture(rng, pool)
        reading, *others = number_turns(rng, rows)
        turns = shuffled(rng, [reading] + shuffled(rng, others, 1), 2)
    else:
        drawing, things = scene_picture(rng)
        description, *others = scene_turns(rng, things)
        harder = [turn for turn in others if turn.question.startswith(("Is", "Which is at", "What colour"))]
        turns = shuffled(rng, [description] + shuffled(rng, others + harder, 3), 4)
    turns[0].images = [drawing]
    return turns
