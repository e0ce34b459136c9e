#!/usr/bin/env python3
"""Asks the demo model about pictures it has never seen: by transformers, and by this engine if its binary is given.

    python evaluate.py model --out /tmp/heldout --binary ../../build/mllama

writes to --out: pictures/*.png; requests.jsonl, one {"messages": [...]} a line as `mllama generate --batch` reads it;
answers.jsonl, a {"task", "answer"} for each; results.json. Both implementations decode greedily in float32 from the
checkpoint's bfloat16 weights; an answer is right only if all of it is. With --dtypes this engine is asked alone, once with
weights held as each type, and the table tells what that costs: `int8` is --dtype int8, `int8/int8` also has
--vision-dtype int8, and `int8/int8/int8` --kv-dtype int8 too.

The digits are those of scikit-learn's set that training never drew; scenes, numbers and pairs are fresh. The sums of
small numbers, at the end, are not held out: there are only 155 of them and the model has been taught them all.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration, MllamaProcessor

import data

DATE = "24 Nov 2026"
MAX_NEW_TOKENS = 64
LINES_PER_BATCH = 32


def single_turns(drawing, turns):
    """The first question about a picture, as a conversation of its own."""
    return [data.Turn(turns[0].question, turns[0].answer, [drawing])]


def all_conversations(rng, scenes):
    """Yields (task, conversation); the last answer of a conversation is the one asked for."""
    held_out = data.HELD_OUT_DIGITS
    for index in held_out:
        drawing, rows = data.number_picture(rng, [index], warp=False, length=1)
        yield "digits", single_turns(drawing, [data.reading_turn(rng, rows)])
    for _ in range(150):
        drawing, rows = data.number_picture(rng, held_out, warp=False, length=int(rng.integers(2, 5)))
        reading, *others = data.number_turns(rng, rows)
        asked = reading if rng.random() < 0.6 else data.pick(rng, others)
        yield "numbers of 2 to 4 digits", single_turns(drawing, [asked])
    for i in range(scenes):
        drawing, things = data.scene_picture(rng)
        description, *others = data.scene_turns(rng, things)
        asked = description if i % 2 == 0 else data.pick(rng, others)
        yield f"scenes, {'described' if i % 2 == 0 else 'asked about'}", single_turns(drawing, [asked])
    for task in ("compare", "later", "sum", "scenes"):
        for _ in range(30):
            yield "two pictures", data.pair_conversation(rng, held_out, warp=False, task=task)
    for a in range(10):
        for b in range(10):
            yield "small sums (all taught)", [data.Turn(f"What is {a} plus {b}?", f"{a + b}.")]
            if a >= b:
                yield "small sums (all taught)", [data.Turn(f"What is {a} minus {b}?", f"{a - b}.")]


def write_requests(directory, conversations):
    """Pictures, requests and answers to `directory`; returns the requests and the answers."""
    os.makedirs(os.path.join(directory, "pictures"), exist_ok=True)
    requests, answers, pictures = [], [], 0
    for task, turns in conversations:
        messages = []
        for turn in turns:
            content = []
            for part in data.parts_of(turn):
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                    continue
                path = os.path.join(directory, "pictures", f"{pictures:04d}.png")
                part.picture.save(path)
                content.append({"type": "image", "path": os.path.abspath(path)})
                pictures += 1
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
        requests.append({"messages": messages[:-1]})
        answers.append({"task": task, "answer": turns[-1].answer})
    for name, lines in (("requests.jsonl", requests), ("answers.jsonl", answers)):
        with open(os.path.join(directory, name), "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return requests, answers


def ask_transformers(directory, requests):
    processor = MllamaProcessor.from_pretrained(directory)
    model = MllamaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    texts = []
    for request in requests:
        messages = request["messages"]
        paths = [part["path"] for message in messages if message["role"] == "user"
                 for part in message["content"] if part["type"] == "image"]
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=DATE)
        inputs = processor(text=prompt, images=[Image.open(path) for path in paths] or None, add_special_tokens=False,
                           return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        texts.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
    return texts


def ask_engine(binary, directory, requests, scratch, dtypes="f32"):
    """`dtypes`: of the text tower, and behind slashes of the vision tower, and of keys and values."""
    options = [word for pair in zip(["--dtype", "--vision-dtype", "--kv-dtype"], dtypes.split("/")) for word in pair]
    texts = []
    path = os.path.join(scratch, f"batch_{os.getpid()}.jsonl")  # two runs with one --out do not mix
    for begin in range(0, len(requests), LINES_PER_BATCH):
        with open(path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in requests[begin:begin + LINES_PER_BATCH])
        command = [binary, "generate", "-m", directory, "--batch", path, "--greedy", "--json", *options,
                   "-n", str(MAX_NEW_TOKENS), "--date", DATE]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        texts += [json.loads(line)["text"] for line in done.stdout.splitlines() if line.strip()]
    os.remove(path)
    if len(texts) != len(requests):
        sys.exit(f"{binary} gave {len(texts)} answers to {len(requests)} requests")
    return texts


def dtype_table(answers, by_dtype):
    """Markdown lines: how many answers are right, a task a line, a type a column."""
    groups = collections.defaultdict(list)
    for i, line in enumerate(answers):
        for task in (line["task"], "all"):
            groups[task].append(i)
    lines = ["| task | " + " | ".join(by_dtype) + " |", "|---" * (len(by_dtype) + 1) + "|"]
    for task in sorted(groups, key=lambda task: task == "all"):
        shares = [sum(texts[i] == answers[i]["answer"] for i in groups[task]) / len(groups[task])
                  for texts in by_dtype.values()]
        lines.append(f"| {task} ({len(groups[task])}) | " + " | ".join(f"{100 * share:.1f}%" for share in shares) + " |")
    return lines


def table(answers, by_transformers, by_engine):
    """Markdown lines, a task a line; scenes also together."""
    groups = collections.defaultdict(list)
    for i, line in enumerate(answers):
        groups[line["task"]].append(i)
        if line["task"].startswith("scenes"):
            groups["scenes, all"].append(i)

    def share(members, right):
        count = sum(right(i) for i in members)
        return f"{count} / {len(members)} ({100 * count / len(members):.1f}%)"

    lines = ["| task | transformers right | this engine right | same answer |", "|---|---|---|---|"]
    for task, members in groups.items():
        row = [task, share(members, lambda i: by_transformers[i] == answers[i]["answer"]), "-", "-"]
        if by_engine:
            row[2] = share(members, lambda i: by_engine[i] == answers[i]["answer"])
            row[3] = f"{sum(by_engine[i] == by_transformers[i] for i in members)} / {len(members)}"
        lines.append("| " + " | ".join(row) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--binary", help="build/mllama")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--dtypes", help="f32,int8,int4/int8: asks only this engine, with weights held as each of these types")
    parser.add_argument("--show-wrong", action="store_true", help="list every answer that is not right")
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    requests, answers = write_requests(args.out, all_conversations(rng, args.scenes))
    if args.dtypes:
        by_dtype = {}
        for dtypes in args.dtypes.split(","):
            begin = time.time()
            by_dtype[dtypes] = ask_engine(args.binary, args.model, requests, args.out, dtypes)
            print(f"{dtypes}: {time.time() - begin:.0f} s", file=sys.stderr)
        print("\n".join(dtype_table(answers, by_dtype)))
        return
    begin = time.time()
    by_transformers = ask_transformers(args.model, requests)
    print(f"transformers: {len(requests)} requests in {time.time() - begin:.0f} s", file=sys.stderr)
    by_engine = None
    if args.binary:
        begin = time.time()
        by_engine = ask_engine(args.binary, args.model, requests, args.out)
        print(f"engine: {len(requests)} requests in {time.time() - begin:.0f} s", file=sys.stderr)
    print("\n".join(table(answers, by_transformers, by_engine)))
    results = [{**answer, "transformers": by_transformers[i], "engine": by_engine[i] if by_engine else None}
               for i, answer in enumerate(answers)]
    with open(os.path.join(args.out, "results.json"), "w") as file:
        json.dump(results, file, indent=0)
    if args.show_wrong:
        for request, line in zip(requests, results):
            if line["transformers"] != line["answer"]:
                print(json.dumps({"messages": request["messages"], **line}))
    if by_engine and by_engine != by_transformers:
        sys.exit("the two implementations disagree")


if __name__ == "__main__":
    main()
