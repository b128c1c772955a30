"""Make tests/golden/images/: picture files, and what Pillow and the image processors of transformers make of them.

    python tools/make_image_goldens.py [--out tests/golden/images]

The pictures are drawn here, from integers alone, so that the same versions give the same files. The format is described in tests/golden/README.md.
"""

import argparse
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from golden_files import versions, write_json
from PIL import Image
from safetensors.numpy import save_file
from transformers.image_processing_utils import select_best_resolution
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

CLASSES = {
    "CLIPFeatureExtractor": CLIPImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "LlavaNextImageProcessor": LlavaNextImageProcessorPil,
    "Qwen2VLImageProcessor": Qwen2VLImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}
CLIP_SCALE = dict(
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
    rescale_factor=0.00392156862745098,
)
HALVES = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], rescale_factor=0.00392156862745098)

# Name: patch size, file, its content. The first ones are small, so that every number is kept; the last four are as published.
PROCESSORS = {
    "clip": (7, "preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", size={"shortest_edge": 29}, crop_size={"height": 28, "width": 21},
        do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, resample=3, **CLIP_SCALE)),
    "clip_feature_extractor": (7, "preprocessor_config.json", dict(
        feature_extractor_type="CLIPFeatureExtractor", size=21, crop_size=28, do_center_crop=True, do_normalize=True,
        do_resize=True, resample=2, image_mean=CLIP_SCALE["image_mean"], image_std=CLIP_SCALE["image_std"])),
    "clip_odd_margin": (5, "preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", size=20, crop_size={"height": 23, "width": 27}, do_normalize=False)),
    "llava_square": (7, "processor_config.json", dict(
        image_processor_type="LlavaImageProcessorFast", size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        do_pad=True, **CLIP_SCALE)),
    "siglip": (7, "processor_config.json", dict(
        image_processor_type="SiglipImageProcessor", size={"height": 30, "width": 23}, do_resize=True, resample=3, **HALVES)),
    "llava_next": (7, "preprocessor_config.json", dict(
        image_processor_type="LlavaNextImageProcessor", size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14},
        image_grid_pinpoints=[[14, 28], [28, 14], [28, 28], [42, 14], [14, 42]], do_pad=True, **CLIP_SCALE)),
    "qwen2_vl": (3, "preprocessor_config.json", dict(
        image_processor_type="Qwen2VLImageProcessor", min_pixels=600, max_pixels=1400, patch_size=3, merge_size=2,
        temporal_patch_size=2, **CLIP_SCALE)),
    "qwen2_vl_edges": (3, "processor_config.json", dict(
        image_processor_type="Qwen2VLImageProcessorFast", size={"shortest_edge": 36, "longest_edge": 90000}, patch_size=3,
        merge_size=3, temporal_patch_size=1, resample=2, **HALVES)),
    "llava_1_5": (14, "preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
        do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, resample=3, **CLIP_SCALE)),
    "llava_interleave": (14, "preprocessor_config.json", dict(
        image_processor_type="SiglipImageProcessor", size={"height": 384, "width": 384}, do_normalize=True, do_rescale=True,
        do_resize=True, resample=3, **HALVES)),
    "llava_1_6": (14, "preprocessor_config.json", dict(
        image_processor_type="LlavaNextImageProcessor", aspect_ratio_setting="anyres", size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336}, do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_pad=True,
        do_rescale=True, do_resize=True, resample=3,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], **CLIP_SCALE)),
    "qwen2_5_vl": (14, "preprocessor_config.json", dict(
        image_processor_type="Qwen2VLImageProcessor", min_pixels=3136, max_pixels=1003520, patch_size=14, merge_size=2,
        temporal_patch_size=2, image_mean=CLIP_SCALE["image_mean"], image_std=CLIP_SCALE["image_std"])),
}
PUBLISHED = ["llava_1_5", "llava_interleave", "llava_1_6", "qwen2_5_vl"]

# Files that all small processors are run on.
PROCESSED = ["edges.png", "noise.png", "tiny.png", "tall.png", "wide.png", "square.png", "photo_420.jpg"]
# Decoders differ from each other in these formats.
LOSSY = (".jpg", "lossy.webp")
# Every how many numbers one is kept as f32.
SMALL_STRIDE, PUBLISHED_STRIDE = 37, 2503


def drawn(height: int, width: int) -> np.ndarray:
    """Curves of all widths, down to a pixel: [height, width, 3]. tests/images.rs draws the same."""
    y, x, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((3 * x * x + 5 * y * y + 7 * x * y + 850 * channel) // 64 % 256).astype(np.uint8)


def edges(height: int, width: int) -> np.ndarray:
    """Thin dark strokes on light ground, as in text, over a gradient."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([255 - x * 60 // width, 255 - y * 60 // height, 200 + (x + y) * 50 // (width + height)], -1)
    stroke = ((x * 5 + y * 3) % 17 < 2) | ((y % 11 == 4) & (x % 23 > 5))
    return np.where(stroke[..., None], np.array([20, 10, 60]), ground).astype(np.uint8)


def noise(height: int, width: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth shapes with a few sharp borders."""
    y, x = np.mgrid[:height, :width]
    sky = np.stack([90 + y * 2, 140 + y, 220 - y], -1)
    ball = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2
    sky[ball] = [200, 60, 40]
    sky[y > height * 3 // 4] = [60, 110, 50]
    return (sky + (x * y % 7)[..., None]).clip(0, 255).astype(np.uint8)


def write_png(path: Path, color_type: int, depth: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of a kind that Pillow cannot write; `rows` are the packed bytes, [height, bytes]; its width is 16."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16, len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in body))


def make_pictures(out: Path) -> None:
    out.mkdir(parents=True)
    save = lambda pixels, name, **options: Image.fromarray(pixels).save(out / name, **options)
    save(edges(61, 97), "edges.png")
    save(noise(30, 41), "noise.png")
    save(noise(5, 3), "tiny.png")
    save(edges(170, 9), "tall.png")
    save(photo(7, 210), "wide.png")
    save(drawn(28, 28), "square.png")

    alpha = drawn(37, 26)
    rgba = np.concatenate([noise(37, 26), alpha[..., :1]], -1)
    save(rgba, "rgba.png")
    save(rgba[..., 2:], "grey_alpha.png")
    save(rgba[..., 0], "grey.png")
    Image.fromarray(rgba[..., 0]).convert("1").save(out / "one_bit.png")
    palette = Image.fromarray(photo(30, 40)).quantize(20)
    palette.save(out / "palette.png")
    palette.save(out / "palette_transparent.png", transparency=3)
    deep = np.random.default_rng(5).integers(0, 1 << 16, (12, 16 * 4), dtype=np.uint16)
    deep[0, :8] = [0, 1, 127, 128, 254, 255, 256, 65535]
    for name, color_type, channels in [("grey", 0, 1), ("rgb", 2, 3), ("grey_alpha", 4, 2), ("rgba", 6, 4)]:
        write_png(out / f"{name}_16_bit.png", color_type, 16, deep[:, : 16 * channels].astype(">u2"))
    packed = noise(12, 8)[..., 0]
    write_png(out / "grey_2_bit.png", 0, 2, packed[:, :4])
    write_png(out / "grey_4_bit.png", 0, 4, packed)
    write_png(out / "grey_colour_key.png", 0, 8, noise(12, 16)[..., 0], (b"tRNS", struct.pack(">H", 20)))
    write_png(out / "rgb_colour_key.png", 2, 8, drawn(12, 16).reshape(12, 48), (b"tRNS", struct.pack(">HHH", 0, 13, 26)))

    scene = photo(45, 60)
    save(scene, "photo_420.jpg", quality=85, subsampling="4:2:0")
    save(scene, "photo_444.jpg", quality=95, subsampling="4:4:4")
    save(scene, "photo_progressive.jpg", quality=80, subsampling="4:2:2", progressive=True)
    save(scene[..., 1], "photo_grey.jpg", quality=85)
    Image.fromarray(scene).convert("CMYK").save(out / "photo_cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    save(scene, "photo_turned.jpg", quality=90, exif=exif)
    save(scene, "lossless.webp", lossless=True)
    save(rgba, "lossless_alpha.webp", lossless=True, exact=True)
    save(scene, "lossy.webp", quality=80)
    frames = [Image.fromarray(np.roll(scene, 9 * shift, 1)) for shift in range(3)]
    frames[0].save(out / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    indexed = [frame.quantize(24) for frame in frames]
    indexed[0].save(out / "frames.gif", save_all=True, append_images=indexed[1:], duration=50)
    indexed[0].save(out / "interlaced.gif", interlace=1)
    indexed[0].save(out / "transparent.gif", transparency=2)
    move_frame(out / "interlaced.gif", out / "small_frame.gif")
    move_frame(out / "transparent.gif", out / "small_frame_transparent.gif")
    # Content decides, not the name.
    shutil.copy(out / "noise.png", out / "noise_named.jpg")


def move_frame(path: Path, out: Path) -> None:
    """The GIF file with a larger screen, on which its frame is off the corner."""
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", 70, 50)
    frame = content.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 60, 45))
    content[frame + 1 : frame + 5] = struct.pack("<HH", 7, 3)
    out.write_bytes(content)


def rows_of(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Patches of [tiles, 3, height, width] in the order in which a convolution's weights meet them: [patches, 3 * patch * patch]."""
    tiles, _, height, width = pixels.shape
    down, across = height // patch, width // patch
    whole = pixels[:, :, : down * patch, : across * patch]
    split = whole.reshape(tiles, 3, down, patch, across, patch)
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(tiles * down * across, 3 * patch * patch)


def processed(config: dict, patch: int, picture: Image.Image, **options: bool) -> tuple[np.ndarray, dict]:
    """Rows of patches, and what else a tower must know."""
    name = config.get("image_processor_type", config.get("feature_extractor_type")).removesuffix("Fast")
    result = CLASSES[name](**{**config, **options})(picture, return_tensors="np")
    size = dict(original_size=[picture.height, picture.width])
    values = result["pixel_values"]
    if name == "Qwen2VLImageProcessor":
        _, rows, columns = result["image_grid_thw"][0].tolist()
        return values, dict(tiles=1, tile_grid=[1, 1], grid=[rows, columns], **size)
    tile_grid = [1, 1]
    if name == "LlavaNextImageProcessor":
        values = values[0]
        tile = config["crop_size"]["height"]
        best = select_best_resolution((picture.height, picture.width), config["image_grid_pinpoints"])
        tile_grid = [best[0] // tile, best[1] // tile]
    grid = [values.shape[2] // patch, values.shape[3] // patch]
    return rows_of(values, patch), dict(tiles=len(values), tile_grid=tile_grid, grid=grid, **size)


def make_cases(out: Path, tensors: dict[str, np.ndarray]) -> list[dict]:
    small = [name for name in PROCESSORS if name not in PUBLISHED]
    pictures = {file: Image.open(out / "pictures" / file).convert("RGB") for file in PROCESSED}
    cases = [(file, picture, name) for file, picture in pictures.items() for name in small]
    for height, width in [(1000, 1500), (333, 250)]:
        cases += [(f"drawn_{height}x{width}", Image.fromarray(drawn(height, width)), name) for name in PUBLISHED]
    described = []
    for file, picture, name in cases:
        patch, _, config = PROCESSORS[name]
        values, sizes = processed(config, patch, picture)
        assert values.dtype == np.float32
        stride = PUBLISHED_STRIDE if name in PUBLISHED else SMALL_STRIDE
        case = f"{file}.{name}"
        tensors[f"values.{case}"] = values.reshape(-1)[::stride].copy()
        if name not in PUBLISHED:
            levels, _ = processed(config, patch, picture, do_rescale=False, do_normalize=False)
            tensors[f"levels.{case}"] = levels.astype(np.uint8)
            assert (tensors[f"levels.{case}"] == levels).all()
        described.append(
            dict(picture=file, processor=name, patch_size=patch, patch_len=values.shape[1], stride=stride, **sizes)
        )
    return described


def sizes() -> tuple[list[list[int]], list[list[int]]]:
    """smart_resize: height, width, factor, fewest, most, rows, columns. select_best_resolution: height, width, rows, columns."""
    random = np.random.default_rng(11)
    pairs = [(int(h), int(w)) for h, w in np.exp(random.uniform(0, np.log(5000), (400, 2))).astype(int)]
    pairs += [(14, 14), (42, 70), (70, 42), (1, 200), (200, 1), (13, 13), (21, 35), (5000, 25), (28, 28), (1, 1)]
    resized = []
    for at, (height, width) in enumerate(pairs):
        rule = [(28, 56 * 56, 28 * 28 * 1280), (28, 4, 1 << 24), (32, 65536, 100000), (6, 600, 1400)][at % 4]
        if max(height, width) <= 200 * min(height, width):
            resized.append([height, width, *rule, *smart_resize(height, width, *rule)])
    pinpoints = PROCESSORS["llava_1_6"][2]["image_grid_pinpoints"]
    best = [[height, width, *select_best_resolution((height, width), pinpoints)] for height, width in pairs]
    return resized, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/images"))
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    make_pictures(out / "pictures")
    for name, (_, file, config) in PROCESSORS.items():
        folder = out / "processors" / name
        folder.mkdir(parents=True)
        nested = {"image_processor": config, "processor_class": "LlavaProcessor"} if file == "processor_config.json" else config
        (folder / file).write_text(json.dumps(nested, indent=1) + "\n")
    tensors = {}
    decoded = []
    for path in sorted((out / "pictures").iterdir()):
        tensors[f"decoded.{path.name}"] = np.array(Image.open(path).convert("RGB"))
        decoded.append(dict(file=path.name, exact=path.name == "noise_named.jpg" or not path.name.endswith(LOSSY)))
    cases = make_cases(out, tensors)
    resized, best = sizes()
    save_file(tensors, out / "expected.safetensors")
    write_json(
        out / "expected.json",
        dict(versions={**versions(), "pillow": PIL.__version__}, decoded=decoded, cases=cases, smart_resize=resized,
             best_resolution=best),
    )


if __name__ == "__main__":
    main()
