#!/usr/bin/env python3
"""Trains the demo model, a tiny Mllama, from nothing on two CPU cores and writes it as a published checkpoint.

    pip install torch==2.8.0 transformers==4.56.2 scikit-learn Pillow
    torchrun --nproc-per-node 2 train.py --out model

One process a core: each computes the gradient of its own samples, and their mean moves all copies of the model alike.

The architecture is the one of Llama 3.2 Vision in every part (see make_config), only small: transformers'
MllamaForConditionalGeneration, trained as it stands. The data are drawn on the fly (data.py).
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn import datasets
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (GenerationConfig, MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessor,
                          MllamaProcessor, PreTrainedTokenizerFast)

import data

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB_SIZE = 1024
IGNORED = -100  # label of a position that is not trained on

# The special tokens of Llama 3.2 in their published order, 32 of them at the end of the vocabulary. <|image|> comes
# one past the end: it has an embedding but, not being predictable, no logit.
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>"] + [f"<|reserved_special_token_{i}|>" for i in range(2, 23)]
FIRST_SPECIAL = VOCAB_SIZE - len(SPECIAL_TOKENS)
ID = {name: FIRST_SPECIAL + i for i, name in enumerate(SPECIAL_TOKENS)} | {"<|image|>": VOCAB_SIZE}

# How Llama 3 cuts text into words before byte-pair encoding.
LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")


# ------------------------------------------------------------------------------------------------------- tokenizer

def tokenizer_corpus():
    """The demo's own sentences, many times over, and ordinary English: the descriptions of scikit-learn's data sets.

    Without its digits, so that every digit stays a token of its own and a number is read digit by digit.
    """
    rng = np.random.default_rng(0)
    turns = []
    for _ in range(1000):
        turns += data.scene_turns(rng, data.scene_picture(rng)[1])
        turns += data.text_conversation(rng)
        turns += data.number_turns(rng, data.number_picture(rng, data.TRAIN_DIGITS)[1])
        turns += data.pair_conversation(rng, data.TRAIN_DIGITS)
    texts = [text for turn in turns for text in (turn.question, turn.answer)]
    months = "January February March April May June July August September October November December"
    short = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
    texts += [f"system\n\n Cutting Knowledge Date: {months}\nToday Date: {short} \n\n", "user\n\n", "assistant\n\n"] * 300
    for load in (datasets.load_iris, datasets.load_digits, datasets.load_wine, datasets.load_breast_cancer,
                 datasets.load_diabetes, datasets.load_linnerud):
        texts += [load().DESCR] * 5
    return ["".join(c for c in text if not c.isdigit()) for text in texts]


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(tokenizer_corpus(), trainers.BpeTrainer(
        vocab_size=FIRST_SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.get_vocab_size() == FIRST_SPECIAL
    begin, begin_id = "<|begin_of_text|>", ID["<|begin_of_text|>"]
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for name, i in ID.items()]
    written["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                  {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {begin: {"id": begin, "ids": [begin_id], "tokens": [begin]}}}]}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)), bos_token=begin, eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>", model_max_length=4096, clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"])


def make_processor():
    """Tokenizer, image processor and chat template in one, as published, but with tiles of 56 pixels."""
    image_processor = MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4,
                                           image_mean=[0.48145466, 0.4578275, 0.40821073],
                                           image_std=[0.26862954, 0.26130258, 0.27577711])
    with open(os.path.join(HERE, "chat_template.jinja"), newline="") as file:
        template = file.read()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return MllamaProcessor(image_processor, tokenizer, chat_template=template)


def make_label_processor():
    """Cuts a Drawing's labels into tiles exactly as its picture, leaving the numbers as they are."""
    return MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4, resample=0, do_rescale=False,
                                do_normalize=False)


# ----------------------------------------------------------------------------------------------------------- model

def make_config():
    special = {"bos_token_id": ID["<|begin_of_text|>"], "pad_token_id": ID["<|finetune_right_pad_id|>"],
               "eos_token_id": [ID["<|end_of_text|>"], ID["<|eom_id|>"], ID["<|eot_id|>"]]}
    vision = {"image_size": 56, "patch_size": 14, "max_num_tiles": 4, "hidden_size": 128, "intermediate_size": 512,
              "attention_heads": 4, "num_hidden_layers": 4, "num_global_layers": 2,
              "intermediate_layers_indices": [1, 3], "vision_output_dim": 128 * 3, "initializer_range": 0.08}
    text = {"vocab_size": VOCAB_SIZE, "hidden_size": 160, "intermediate_size": 384, "num_hidden_layers": 5,
            "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1, 3],
            "rope_theta": 500000.0, "max_position_embeddings": 4096, "tie_word_embeddings": False, "initializer_range": 0.08,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 512}, **special}
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=VOCAB_SIZE)


def waves(rows, columns, width):
    """Sines and cosines of two coordinates, [..., width]: places near each other have similar vectors."""
    speed = 16.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = [place[..., None] * speed for place in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)


def lay_out_positions(vision_model):
    """Position embeddings begin as waves: the shared ones over a tile, those of an arrangement over all its tiles."""
    config = vision_model.config
    side = config.image_size // config.patch_size
    table = vision_model.gated_positional_embedding
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    y, x = y.flatten(), x.flatten()  # [patches]
    table.embedding.data[1:] = waves(y, x, config.hidden_size)  # row 0 is the class token's
    tiles = table.tile_embedding.weight.data.view(-1, config.max_num_tiles, side * side + 1, config.hidden_size)
    for row, (height, width) in enumerate(config.supported_aspect_ratios, start=1):
        for tile in range(height * width):
            tiles[row, tile, 1:] = waves(y + side * (tile // width), x + side * (tile % width), config.hidden_size)


def begin_afresh(model):
    """Starting values for learning from nothing, where the library's are meant for growing out of published weights.

    Its 0.02 for matrices is right for 4096 wide layers: here 0.08, about 1 / sqrt(width) (initializer_range above).
    The gates, published models having grown from closed ones, start half open. Embeddings start large enough to be
    seen: tokens beside what the layers add, positions beside what the patches hold.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("gate", "gate_attn", "gate_ffn")):
            parameter.data.fill_(0.7)
        elif name.endswith("embed_tokens.weight"):
            parameter.data.normal_(0, 0.5)
        elif name.endswith(("tile_embedding.weight", "tile_positional_embedding.embedding.weight")):
            parameter.data.normal_(0, 0.25)
    lay_out_positions(model.model.vision_model)


def tile_tables(model):
    """The three tables with one row a tile arrangement, each with its view [arrangement, tile, values]."""
    vision, tiles = model.model.vision_model, model.config.vision_config.max_num_tiles
    for table in (vision.pre_tile_positional_embedding.embedding, vision.post_tile_positional_embedding.embedding,
                  vision.gated_positional_embedding.tile_embedding):
        yield table.weight.data.view(table.num_embeddings, tiles, -1)


def clear_unused_tiles(model):
    """As in the published weights: row 0 (no picture) and the rows of tiles that an arrangement lacks are zero."""
    arrangements = model.config.vision_config.supported_aspect_ratios  # of (height, width), row 1 the first
    for table in tile_tables(model):
        table[0] = 0
        for row, (height, width) in enumerate(arrangements, start=1):
            table[row, height * width:] = 0


# --------------------------------------------------------------------------------------------------------- batches

def messages_of(turns):
    messages = []
    for turn in turns:
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                   for part in data.parts_of(turn)]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


def random_date(rng):
    months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    return f"{rng.integers(1, 32):02d} {data.pick(rng, months)} {rng.integers(2020, 2041)}"


def answer_labels(input_ids, assistant_ids):
    """The ids [batch, length] where the assistant speaks, up to and with <|eot_id|>; IGNORED elsewhere."""
    labels = torch.full_like(input_ids, IGNORED)
    for row, ids in enumerate(input_ids.tolist()):
        speaking, at = False, 0
        while at < len(ids):
            if ids[at] == ID["<|start_header_id|>"]:
                end = ids.index(ID["<|end_header_id|>"], at)
                speaking = ids[at + 1:end] == assistant_ids
                at = end + 2  # the header ends with "\n\n", one token
                continue
            if speaking:
                labels[row, at] = ids[at]
            speaking = speaking and ids[at] != ID["<|eot_id|>"]
            at += 1
    return labels


def patch_labels(label_processor, drawings, aspect_ratio_mask):
    """(what, colour, size) at the centre of every patch: [batch, images, tiles, 16, 3]; IGNORED in padding tiles."""
    tiles = label_processor([[d.labels for d in row] for row in drawings], return_tensors="pt")["pixel_values"]
    centres = tiles[..., 7::14, 7::14].flatten(-2).transpose(-1, -2).long()
    return centres.masked_fill(aspect_ratio_mask[..., None, None] == 0, IGNORED)


def make_batch(rng, processor, label_processor, conversations):
    """Conversations with equally many pictures as the model's inputs, with labels for the answers and the patches."""
    texts = [processor.apply_chat_template(messages_of(turns), tokenize=False, date_string=random_date(rng))
             for turns in conversations]
    drawings = [[drawing for turn in turns for drawing in turn.images] for turns in conversations]
    pictures = [[drawing.picture for drawing in row] for row in drawings]
    batch = processor(text=texts, images=pictures if pictures[0] else None, padding=True, padding_side="right",
                      add_special_tokens=False, return_tensors="pt")
    batch["labels"] = answer_labels(batch["input_ids"], processor.tokenizer.encode("assistant", add_special_tokens=False))
    if pictures[0]:
        batch["patch_labels"] = patch_labels(label_processor, drawings, batch["aspect_ratio_mask"])
    return dict(batch)


class Pictures(torch.utils.data.IterableDataset):
    """Endless batches of pictures alone with their patch labels, for the first part of training."""

    def __init__(self, processor, seed, number_share):
        self.processor, self.seed, self.number_share = processor, seed, number_share

    def __iter__(self):
        torch.set_num_threads(1)
        rng, label_processor = np.random.default_rng(self.seed), make_label_processor()
        while True:
            drawings = [[data.one_picture(rng, data.TRAIN_DIGITS, self.number_share)] for _ in range(16)]
            batch = self.processor.image_processor([[d.picture for d in row] for row in drawings], return_tensors="pt")
            labels = patch_labels(label_processor, drawings, batch["aspect_ratio_mask"])
            yield {name: batch[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}, labels


class Conversations(Pictures):
    """Endless training steps, each a list of batches: one picture, two pictures, text only."""

    def __iter__(self):
        torch.set_num_threads(1)
        rng, label_processor = np.random.default_rng(self.seed), make_label_processor()
        pool = data.TRAIN_DIGITS
        while True:
            yield [make_batch(rng, self.processor, label_processor, conversations) for conversations in (
                [data.picture_conversation(rng, pool, self.number_share) for _ in range(10)],
                [data.pair_conversation(rng, pool) for _ in range(2)],
                [data.text_conversation(rng, 6)])]


# -------------------------------------------------------------------------------------------------------- training

def learning_rate(progress, peak, warm_up=0.02):
    """Linear warm-up, then half a cosine down to zero; progress 0..1."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


class Eyes(torch.nn.Module):
    """A training aid: says from the vision tower's output what every patch shows, and is thrown away afterwards.

    Answers alone teach slowly, a few tokens a picture; this teaches the vision tower at every patch, so that there is
    soon something to look at.
    """

    def __init__(self, vision_model):
        super().__init__()
        self.head = torch.nn.Linear(vision_model.config.vision_output_dim,
                                    data.WHATS + data.COLOUR_LABELS + data.SIZE_LABELS)
        vision_model.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.seen = output.last_hidden_state[..., 1:, :]  # [batch, images, tiles, 16, 384], without the class token

    def loss(self, labels):
        """labels [batch, images, tiles, 16, 3]. What stands there counts fully, empty paper a fifth."""
        guesses = self.head(self.seen).split([data.WHATS, data.COLOUR_LABELS, data.SIZE_LABELS], -1)
        what, colour, size = labels.unbind(-1)
        paper, shown, shape = what == 0, what > 0, colour > 0
        loss = 0.2 * F.cross_entropy(guesses[0][paper], what[paper]) + F.cross_entropy(guesses[0][shown], what[shown])
        if shape.any():
            loss = loss + F.cross_entropy(guesses[1][shape], colour[shape])
            loss = loss + F.cross_entropy(guesses[2][shape], size[shape])
        right = (guesses[0][shown].argmax(-1) == what[shown]).float().mean().item()
        return loss, right


def average_gradients(parameters):
    """Every process gets the mean of all processes' gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.div_(dist.get_world_size()).split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def update(model, optimizer):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    clear_unused_tiles(model)


def first_process_says(value):
    """The number that process 0 passes, in all processes: clocks differ, and all must stop at the same step."""
    number = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(number, 0)
    return number.item()


def look(model, eyes, batch, eyes_weight):
    """A step of the first part: only the vision tower learns, from what its eyes name."""
    pictures, labels = batch
    model.model.vision_model(**pictures)
    loss, right = eyes.loss(labels)
    (eyes_weight * loss).backward()
    return f"eyes' loss {loss.item():.4f}  patches right {100 * right:.1f}%"


def converse(model, eyes, batches, eyes_weight):
    """A step of the second part: the mean loss of all answer tokens, and the eyes' on one-picture samples."""
    total = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    means, right = [], 0.0
    for batch in batches:
        labels, patches = batch.pop("labels")[:, 1:], batch.pop("patch_labels", None)
        logits = model(**batch, use_cache=False).logits[:, :-1]  # position i predicts token i + 1
        answered = labels != IGNORED
        loss = F.cross_entropy(logits[answered], labels[answered], reduction="sum") / total
        means.append(loss.item() * total / int(answered.sum()))
        if len(means) == 1:
            eyes_loss, right = eyes.loss(patches)
            loss = loss + eyes_weight * eyes_loss
        loss.backward()
    return "loss one picture {:.4f}  two {:.4f}  text {:.4f}".format(*means) + f"  patches right {100 * right:.1f}%"


def save(model, processor, directory):
    """The published layout, weights in bfloat16."""
    config = GenerationConfig(do_sample=False, bos_token_id=ID["<|begin_of_text|>"],
                              eos_token_id=model.config.text_config.eos_token_id,
                              pad_token_id=ID["<|finetune_right_pad_id|>"])
    rounded = MllamaForConditionalGeneration(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = config
    rounded.save_pretrained(directory)
    processor.save_pretrained(directory, save_jinja_files=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="directory of the checkpoint, rewritten every few minutes")
    parser.add_argument("--minutes", type=float, default=60, help="training time; the learning rate reaches 0 with it")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--eyes-share", type=float, default=0.25, help="share of the time for the vision tower alone")
    parser.add_argument("--eyes-weight", type=float, default=0.5, help="of the eyes' loss beside the answers'")
    parser.add_argument("--number-share", type=float, default=0.6, help="share of one-picture samples that are numbers")
    parser.add_argument("--continue-from", help="a checkpoint to go on from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=300, metavar="SECONDS")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29511")
    rank = int(os.environ.get("RANK", 0))
    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ.get("WORLD_SIZE", 1)))
    if args.continue_from:
        processor = MllamaProcessor.from_pretrained(args.continue_from)
        model = MllamaForConditionalGeneration.from_pretrained(args.continue_from, dtype=torch.float32)
    else:
        processor = make_processor()
        model = MllamaForConditionalGeneration(make_config())
        begin_afresh(model)
    clear_unused_tiles(model)
    model.train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    eyes = Eyes(model.model.vision_model)
    optimizer = torch.optim.AdamW([*model.parameters(), *eyes.parameters()], weight_decay=0.05, betas=(0.9, 0.98))
    begin = saved = time.time()
    step = 0
    for data_set, step_of, until in ((Pictures, look, args.eyes_share), (Conversations, converse, 1.0)):
        samples = torch.utils.data.DataLoader(data_set(processor, 1000 * args.seed + rank, args.number_share), batch_size=None,
                                              num_workers=1, prefetch_factor=8)
        for sample in samples if until > 0 else ():
            progress = first_process_says((time.time() - begin) / (60 * args.minutes))
            if progress >= until:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, args.learning_rate)
            line = step_of(model, eyes, sample, args.eyes_weight)
            update(model, optimizer)
            if step % 20 == 0 and rank == 0:
                print(f"{time.time() - begin:6.0f} s  step {step:5d}  {line}", flush=True)
            step += 1
            if rank == 0 and time.time() - saved > args.save_every:
                save(model, processor, args.out)
                saved = time.time()
    if rank == 0:
        save(model, processor, args.out)
        print(f"{step} steps in {(time.time() - begin) / 60:.1f} minutes", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
