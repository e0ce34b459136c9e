"""Makes image/: picture files of every form, what Pillow 13.0.0 and transformers 4.56.2 make of them, resized pictures, and
the output of MllamaImageProcessor. Run in an environment with both: python make_image_goldens.py

    files/*           the pictures
    pictures.json     for each: size, whether it is stored as RGB, where its RGB values are in pictures.bin (uint8); or error
    resample.json     sizes and filters; the inputs are noise(), the outputs are in resample.bin (uint8)
    processor.json    sizes and configurations; the inputs are noise(), the pixel values are in processor.bin (float32)
    packing.json      the same for batches; pixel values in packing.bin
"""
import io
import json
import os
import struct

import numpy as np
from PIL import Image, ImageOps
from transformers.models.mllama.image_processing_mllama import MllamaImageProcessor, convert_to_rgb

import picture_writers as write

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "image")
RNG = np.random.default_rng(20)


def noise(width, height, seed):
    """The picture that the tests generate too: the high bytes of a linear congruential sequence."""
    state, values = seed, []
    for _ in range(width * height * 3):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(state >> 24)
    return np.array(values, np.uint8).reshape(height, width, 3)


def smooth(width, height, channels=3):
    """A picture that JPEG is made for: waves and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 90 * np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(channels)]
    picture = np.stack(planes, -1) + RNG.normal(0, 6, (height, width, channels))
    return np.clip(picture, 0, 255).astype(np.uint8)


def jpeg(picture, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(picture if mode != "L" else picture[:, :, 0], mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_orientation(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(picture, quality=90, exif=exif)


def change_segment(data, marker, change):
    """A JPEG file whose first segment with the marker is replaced: change(segment) -> bytes."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + struct.unpack(">H", data[at + 2:at + 4])[0]
    end = at + 2 + struct.unpack(">H", data[at + 2:at + 4])[0]
    return data[:at] + change(data[at:end]) + data[end:]


def png_files():
    files = {}
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    names = {0: "grey", 2: "rgb", 3: "palette", 4: "grey_alpha", 6: "rgba"}
    for colour, name in names.items():
        for depth in depths[colour]:
            highest = 2**depth if colour != 3 else min(2**depth, 20)
            samples = RNG.integers(0, highest, (9, 13, write.SAMPLES[colour]))
            before = []
            if colour == 3:
                before = [(b"PLTE", RNG.integers(0, 256, 3 * highest, dtype=np.uint8).tobytes())]
            for interlaced in (False, True):
                suffix = "_interlaced" if interlaced else ""
                files[f"{name}_{depth}{suffix}.png"] = write.png(samples, depth, colour, before, (), interlaced)
            if colour == 0:
                key = int(samples[2, 2, 0])
                for what, value in (("key", key), ("high_key", key + 256)):
                    data = struct.pack(">H", value)
                    files[f"{name}_{depth}_{what}.png"] = write.png(samples, depth, colour, [(b"tRNS", data)])
            if colour == 2:
                data = struct.pack(">3H", *(int(v) for v in samples[0, 0]))
                files[f"{name}_{depth}_key.png"] = write.png(samples, depth, colour, [(b"tRNS", data)])
            if colour == 3:
                alphas = bytes([0, 255, 128, 3][:highest])
                files[f"{name}_{depth}_alpha.png"] = write.png(samples, depth, colour, before + [(b"tRNS", alphas)])
    # 16-bit grey below 256 shows that Pillow clamps instead of scaling.
    files["grey_16_small.png"] = write.png(RNG.integers(0, 400, (6, 8, 1)), 16, 0)
    files["palette_short.png"] = write.png(RNG.integers(0, 16, (6, 8, 1)), 4, 3, [(b"PLTE", bytes(range(9)))])
    every_alpha = np.stack(np.broadcast_arrays(np.arange(0, 256, 5)[:, None], np.arange(0, 256, 5)[None, :]), -1)
    files["every_alpha.png"] = write.png(every_alpha, 8, 4)
    return files


def orientation_files():
    picture = smooth(11, 7)
    files = {f"orientation_{i}.jpg": with_orientation(picture, i) for i in range(10)}
    samples = RNG.integers(0, 256, (3, 5, 3))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    profile = b"\nexif\n      32\n" + (b"Exif\0\0" + write.exif(8)).hex().encode() + b"\n"
    chunks = {
        "exif": ([(b"eXIf", write.exif(6))], []),
        "exif_big_endian": ([(b"eXIf", write.exif(5, ">"))], []),
        "exif_long": ([(b"eXIf", write.exif(7, ">", 4))], []),
        "exif_byte": ([(b"eXIf", write.exif(6, "<", 1))], []),
        "exif_after_data": ([], [(b"eXIf", write.exif(3))]),
        "exif_prefixed": ([(b"eXIf", b"Exif\0\0" + write.exif(2))], []),
        "two_exif": ([(b"eXIf", write.exif(6)), (b"eXIf", write.exif(1))], []),
        "xmp": ([(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)], []),
        "xmp_compressed": ([(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + write.zlib.compress(xmp))], []),
        "exif_wins_over_xmp": ([(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), (b"eXIf", write.exif(1))], []),
        "other_exif_and_xmp": ([(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), (b"eXIf", write.exif(3, tag=0x111))], []),
        "profile": ([(b"tEXt", b"Raw profile type exif\0" + profile)], []),
        "profile_compressed": ([(b"zTXt", b"Raw profile type exif\0\0" + write.zlib.compress(profile))], []),
    }
    for name, (before, after) in chunks.items():
        files[f"orientation_{name}.png"] = write.png(samples, 8, 2, before, after)
    files["orientation_xmp.jpg"] = jpeg(smooth(11, 7), xmp=b"<tiff:Orientation>8</tiff:Orientation>")
    files["orientation_grey_alpha.png"] = write.png(RNG.integers(0, 256, (3, 5, 2)), 8, 4, [(b"eXIf", write.exif(6))])
    return files


def jpeg_files():
    picture, square = smooth(45, 37), smooth(32, 32)
    files = {}
    for quality in (30, 75, 98):
        for subsampling in (0, 1, 2):
            files[f"baseline_{quality}_{subsampling}.jpg"] = jpeg(picture, quality=quality, subsampling=subsampling)
    files["progressive.jpg"] = jpeg(picture, quality=80, progressive=True)
    files["progressive_grey.jpg"] = jpeg(picture, "L", quality=80, progressive=True)
    files["noise.jpg"] = jpeg(noise(33, 29, 4), quality=95)
    files["restarts.jpg"] = jpeg(picture, restart_marker_blocks=2)
    files["grey.jpg"] = jpeg(picture, "L")
    for width in (1, 2, 3, 4, 5, 6):  # subsampled components of up to two columns are not interpolated
        files[f"narrow_{width}.jpg"] = jpeg(smooth(width, 9), subsampling=1 + width % 2)
    frame = 0xC0
    files["vertical_subsampling.jpg"] = change_segment(jpeg(square, subsampling=1), frame,
                                                       lambda s: s[:11] + b"\x12" + s[12:])
    files["quarter_subsampling.jpg"] = change_segment(jpeg(square, subsampling=2), frame,
                                                      lambda s: s[:11] + b"\x41" + s[12:])
    inks = smooth(21, 17, 4)
    adobe = 0xEE
    files["cmyk.jpg"] = jpeg(inks, "CMYK")
    files["ycck.jpg"] = change_segment(jpeg(inks, "CMYK"), adobe, lambda s: s[:-1] + b"\2")
    files["cmyk_unmarked.jpg"] = change_segment(jpeg(inks, "CMYK"), adobe, lambda s: b"")
    files["rgb_adobe.jpg"] = change_segment(jpeg(picture), 0xE0, lambda s: b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0")
    return files


def gif_files():
    palette = RNG.integers(0, 256, (16, 3))
    local = RNG.integers(0, 256, (8, 3))
    ramp = np.repeat(np.arange(16)[:, None], 3, 1)
    indices = RNG.integers(0, 16, (9, 13))
    many = RNG.integers(0, 256, (60, 90))
    return {
        "plain.gif": write.gif(indices, 4, palette=palette),
        "interlaced.gif": write.gif(indices, 4, palette=palette, interlaced=True),
        "transparent.gif": write.gif(indices, 4, palette=palette, transparent=5),
        "local_palette.gif": write.gif(indices % 8, 3, palette=palette, local=local),
        "no_palette.gif": write.gif(indices, 4),
        "grey_ramp.gif": write.gif(many % 40, 6, palette=ramp),
        "short_palette.gif": write.gif(indices, 4, palette=palette[:4]),
        "partial_frame.gif": write.gif(indices, 4, (20, 15), (3, 2), palette, background=7),
        "partial_transparent.gif": write.gif(indices, 4, (20, 15), (3, 2), palette, transparent=1, background=7),
        "frame_beyond_screen.gif": write.gif(indices, 4, (10, 8), (3, 2), palette),
        "all_code_sizes.gif": write.gif(many, 8, palette=RNG.integers(0, 256, (256, 3))),
    }


def bmp_files():
    files = {}
    for bits in (1, 4, 8):
        rows = RNG.integers(0, 2**bits, (7, 11))
        palette = RNG.integers(0, 256, (2**bits, 3))
        files[f"palette_{bits}.bmp"] = write.bmp(rows, bits, palette=palette)
        files[f"palette_{bits}_os2.bmp"] = write.bmp(rows, bits, 12, palette)
        files[f"palette_{bits}_top_down.bmp"] = write.bmp(rows, bits, 108, palette, top_down=True)
    files["palette_short.bmp"] = write.bmp(RNG.integers(0, 256, (7, 11)), 8, palette=palette[:50], colours=50)
    for bits in (16, 24, 32):
        rows = RNG.integers(0, 2**bits, (7, 11))
        files[f"rgb_{bits}.bmp"] = write.bmp(rows, bits)
        files[f"rgb_{bits}_v5.bmp"] = write.bmp(rows, bits, 124, top_down=True)
    files["mask_565.bmp"] = write.bmp(RNG.integers(0, 2**16, (7, 11)), 16, 56, None, 3, (0xF800, 0x7E0, 0x1F, 0))
    for name, masks in (("rgba", (0xFF, 0xFF00, 0xFF0000, 0xFF000000)), ("bgra", (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
                        ("xbgr", (0xFF000000, 0xFF0000, 0xFF00, 0)), ("none", (0, 0, 0, 0))):
        files[f"mask_{name}.bmp"] = write.bmp(RNG.integers(0, 2**32, (7, 11)), 32, 108, None, 3, masks)
    rows = np.zeros((4, 9), int)
    runs8 = bytes([9, 3, 0, 0, 2, 7, 0, 3, 1, 2, 3, 0, 4, 9, 0, 0, 0, 2, 4, 1, 3, 8, 0, 0, 2, 5, 0, 1])
    files["runs_8_step.bmp"] = write.bmp(rows, 8, 40, palette, 1, data=runs8)
    runs8 = bytes([9, 3, 0, 0, 2, 7, 0, 3, 1, 2, 3, 0, 4, 9, 0, 0, 0, 2, 4, 1, 12, 8, 0, 0])
    files["runs_8.bmp"] = write.bmp(rows, 8, 40, palette, 1, data=runs8 + bytes([9, 1, 0, 1]))
    runs4 = bytes([9, 0x3A, 0, 0, 2, 0x71, 0, 5, 0x12, 0x34, 0x50, 0, 2, 0x96, 0, 0, 0, 2, 4, 1, 12, 0x85, 0, 0])
    files["runs_4.bmp"] = write.bmp(rows, 4, 40, palette[:16], 2, data=runs4 + bytes([9, 0x12, 0, 1]))
    return files


def broken_files():
    """Files that must be refused; Pillow refuses most of them too."""
    png = write.png(RNG.integers(0, 256, (9, 13, 3)), 8, 2)
    baseline, progressive = jpeg(smooth(45, 37)), jpeg(smooth(45, 37), progressive=True)
    bomb = b"\x89PNG\r\n\x1a\n" + write.chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    bomb += write.chunk(b"IDAT", write.zlib.compress(bytes(100))) + write.chunk(b"IEND", b"")
    gif = write.gif(RNG.integers(0, 16, (9, 13)), 4, palette=RNG.integers(0, 256, (16, 3)))
    bmp = write.bmp(RNG.integers(0, 2**24, (7, 11)), 24)
    damaged = bytearray(png)
    damaged[60] ^= 1
    return {
        "empty.png": b"", "text.png": b"this is not a picture\n", "webp.png": b"RIFF\x1a\0\0\0WEBPVP8L",
        "truncated.png": png[:len(png) // 2], "damaged.png": bytes(damaged), "signature.png": png[:8], "bomb.png": bomb,
        "no_palette.png": write.png(RNG.integers(0, 16, (6, 8, 1)), 4, 3),
        "truncated.jpg": baseline[:len(baseline) // 2], "no_end.jpg": baseline[:-2],
        "truncated_progressive.jpg": progressive[:-40], "headers_only.jpg": baseline[:200], "start.jpg": baseline[:3],
        "bomb.jpg": change_segment(baseline, 0xC0, lambda s: s[:5] + b"\x30\x00\x30\x00" + s[9:]),
        "truncated.gif": gif[:-20], "header.gif": gif[:10], "bomb.gif": gif[:6] + b"\xff\x2f\xff\x2f" + gif[10:],
        "truncated.bmp": bmp[:-30], "header.bmp": bmp[:20],
        "bomb.bmp": bmp[:18] + struct.pack("<ii", 12000, 12000) + bmp[26:],
        "jpeg_inside.bmp": bmp[:30] + b"\4" + bmp[31:],
        "runs.bmp": write.bmp(np.zeros((4, 9), int), 8, 40, np.zeros((256, 3), int), 1, data=bytes([9, 3, 0, 0, 0, 1])),
        "odd_masks.bmp": write.bmp(RNG.integers(0, 2**32, (7, 11)), 32, 56, None, 3, (0x7F, 0xFF00, 0xFF0000, 0)),
    }


def oracle(data):
    picture = Image.open(io.BytesIO(data))
    mode = picture.mode
    return np.array(convert_to_rgb(ImageOps.exif_transpose(picture))), mode == "RGB"


def make_pictures():
    files = {**png_files(), **orientation_files(), **jpeg_files(), **gif_files(), **bmp_files()}
    entries, values = [], b""
    for name, data in {**files, **{"broken_" + n: d for n, d in broken_files().items()}}.items():
        with open(os.path.join(HERE, "files", name), "wb") as file:
            file.write(data)
        if name.startswith("broken_"):
            entries.append({"file": name, "error": True})
            continue
        rgb, stored_as_rgb = oracle(data)
        entries.append({"file": name, "width": rgb.shape[1], "height": rgb.shape[0], "stored_as_rgb": stored_as_rgb,
                        "offset": len(values)})
        values += rgb.tobytes()
    save("pictures", entries, values)


def make_resample():
    sizes = [(17, 13, 9, 7), (5, 4, 31, 23), (40, 3, 7, 19), (3, 40, 19, 7), (16, 16, 16, 5), (16, 16, 5, 16), (1, 1, 6, 5),
             (1, 200, 3, 11), (200, 1, 11, 3), (12, 9, 12, 9), (30, 20, 1, 1), (23, 61, 8, 33), (23, 61, 8, 30)]
    entries, values = [], b""
    for number, (width, height, to_width, to_height) in enumerate(sizes):
        for kind in range(6):
            resized = Image.fromarray(noise(width, height, number)).resize((to_width, to_height), kind)
            entries.append({"seed": number, "from": [width, height], "to": [to_width, to_height], "filter": kind,
                            "offset": len(values)})
            values += np.array(resized).tobytes()
    save("resample", entries, values)


CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def processor_cases():
    size = {"size": {"height": 16, "width": 16}}
    for width, height in ((16, 16), (5, 3), (40, 9), (9, 40), (64, 64), (33, 31), (100, 20), (20, 100), (17, 90), (1, 1),
                          (1, 300), (300, 1), (47, 16), (32, 16)):
        yield width, height, {**size, **CLIP}
    for kind in range(6):
        yield 37, 29, {**size, **CLIP, "resample": kind}
        yield 7, 5, {**size, **CLIP, "resample": kind}
    for tiles in (1, 2, 3, 5, 6, 9):
        yield 50, 39, {**size, "max_image_tiles": tiles}
    for options in ({"do_rescale": False}, {"do_normalize": False}, {"do_rescale": False, "do_normalize": False},
                    {"rescale_factor": 0.0078125}, {"rescale_factor": 0.00392156862745098, **CLIP}, {"rescale_factor": 1},
                    {"image_mean": 0.25, "image_std": [0.5, 0.125, 3]}, {"image_mean": [0, 0, 0], "image_std": 1},
                    {"do_convert_rgb": False}, {"resample": 3, "do_convert_rgb": True}):
        yield 21, 34, {**size, **options}
    yield 90, 61, {"size": {"height": 56, "width": 56}, **CLIP}


def make_processor():
    entries, values = [], b""
    for seed, (width, height, config) in enumerate(processor_cases()):
        result = MllamaImageProcessor(**config)(Image.fromarray(noise(width, height, seed)), return_tensors="np")
        tiles = result["num_tiles"][0][0]
        pixel_values = result["pixel_values"][0, 0]
        assert not pixel_values[tiles:].any()
        grids = [(h, w) for h in range(1, 20) for w in range(1, 20) if h * w <= config.get("max_image_tiles", 4)]
        aspect_ratio_id = int(result["aspect_ratio_ids"][0, 0])
        entries.append({"seed": seed, "from": [width, height], "config": config, "num_tiles": tiles,
                        "aspect_ratio_id": aspect_ratio_id, "grid": grids[aspect_ratio_id - 1], "offset": len(values)})
        values += pixel_values[:tiles].astype("<f4").tobytes()
    save("processor", entries, values)


def make_packing():
    config = {"size": {"height": 8, "width": 8}, **CLIP}
    batches = [[[(20, 9)], [(8, 8), (9, 30)]], [[(5, 5)]], [[(30, 30), (1, 9), (17, 8)], [(16, 8)]]]
    entries, values = [], b""
    for batch in batches:
        pictures = [[Image.fromarray(noise(w, h, w * h)) for w, h in sample] for sample in batch]
        result = MllamaImageProcessor(**config)(pictures, return_tensors="np")
        entries.append({"config": config, "samples": batch, "shape": result["pixel_values"].shape,
                        "aspect_ratio_ids": result["aspect_ratio_ids"].reshape(-1).tolist(),
                        "aspect_ratio_mask": result["aspect_ratio_mask"].reshape(-1).tolist(),
                        "num_tiles": result["num_tiles"], "offset": len(values)})
        values += result["pixel_values"].astype("<f4").tobytes()
    save("packing", entries, values)


def save(name, entries, values):
    with open(os.path.join(HERE, name + ".json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
    with open(os.path.join(HERE, name + ".bin"), "wb") as file:
        file.write(values)


if __name__ == "__main__":
    os.makedirs(os.path.join(HERE, "files"), exist_ok=True)
    make_pictures()
    make_resample()
    make_processor()
    make_packing()
