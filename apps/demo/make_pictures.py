#!/usr/bin/env python3
"""Draws the pictures that `make demo` shows, and questions.json with what it asks about them.

Only held-out digits, so the model has seen none of these. An entry of questions.json holds "images", "question" and
"answer" to show, and "messages" to send; paths are relative to that file.
"""
import json
import os

import numpy as np

import data

HERE = os.path.dirname(os.path.abspath(__file__))


def scene(rng, count, width, height):
    things = None
    while things is None:
        things = data.place_things(rng, count, width, height)
    return data.draw_scene(rng, things, width, height), things


def main():
    rng = np.random.default_rng(2024)
    pool = data.HELD_OUT_DIGITS
    entries = []

    def add(names, turn):
        paths = [f"pictures/{name}.png" for name in names]
        for path, drawing in zip(paths, turn.images):
            drawing.picture.save(os.path.join(HERE, path), optimize=True)
        left = iter(paths)
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "path": next(left)}
                   for part in data.parts_of(turn)]
        entries.append({"images": paths, "question": turn.question, "answer": turn.answer,
                        "messages": [{"role": "user", "content": content}]})

    def number(name, lengths, size, question):
        rows = [list(rng.choice(pool, length)) for length in lengths]
        drawing = data.draw_number(rng, rows, size, warp=False)
        add([name], data.Turn(question, data.reading_turn(rng, rows).answer, [drawing]))

    os.makedirs(os.path.join(HERE, "pictures"), exist_ok=True)
    number("digit", [1], 96, "What does the image show?")
    number("number", [4], 50, "What does the image show?")  # four tiles side by side
    number("rows", [2, 2], 48, "Read the numbers.")  # two by two tiles
    drawing, things = scene(rng, 3, 224, 224)
    add(["scene"], data.Turn("What does the image show?", data.scene_turns(rng, things)[0].answer, [drawing]))
    drawing, things = scene(rng, 2, 160, 64)
    add(["pair"], data.Turn("Which is to the left?", f"The {things[0].name()}.", [drawing]))
    drawing, things = scene(rng, 3, 112, 100)
    add(["count"], data.Turn("How many shapes are there?", f"{len(things)}.", [drawing]))
    rows = [list(rng.choice(pool, 2)) for _ in range(2)]
    drawings = [data.draw_number(rng, [row], 48, warp=False) for row in rows]
    answer = data.compared_numbers(*(data.text_of(row) for row in rows))
    add(["first", "second"], data.Turn("Which number is larger?", answer, drawings))
    add([], data.Turn("What is 3 plus 4?", "7."))
    with open(os.path.join(HERE, "questions.json"), "w") as file:
        json.dump(entries, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
