"""The shapes behind tests/golden/{llava,qwen2_vl,llava_next,llava_interleave,qwen2_5_vl}/: configurations as transformers 5 takes them and as the
published checkpoints spell them, preprocessor files, sizes of pictures and names of weights.

The older configurations say what the published ones say and leave out what those leave out, where a small model can still be right.
"""

import re
from dataclasses import dataclass

VOCAB = 128
TEXT_IDS = 112  # ids below are text; the model is made never to say the others
IMAGE_ID, VISION_START_ID, VISION_END_ID, VIDEO_ID, VISION_ID = range(120, 125)
TILE, PATCH = 56, 14

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# What every text model shares. No end-of-sequence token: a generation always has its full length.
COMMON = dict(max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=None)


@dataclass(frozen=True)
class VisionCase:
    """A model, how its checkpoint is written, and the sizes of its pictures."""

    name: str
    model_type: str
    text: dict
    vision: dict
    more: dict  # of the outer configuration
    older: dict  # config.json of the published kind, complete
    preprocessor: dict  # preprocessor_config.json of the published kind
    processor: str  # class of the image processor that works with PIL and numpy
    older_processor: dict | None  # processor_config.json of the published kind
    pictures: dict[str, tuple[int, int]]  # name: (width, height)
    pairs: tuple[str, str]  # two of them for a prompt with two pictures
    long_picture: str | None = None  # the one that lies across position 256

    @property
    def wraps_pictures(self) -> bool:
        """Whether a placeholder stands between a start and an end token."""
        return self.model_type.startswith("qwen")


def text_shape(**changes: object) -> dict:
    """A small Llama."""
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        tie_word_embeddings=False,
    )
    return shape | COMMON | changes


# The last layer is not used: features are taken one before it.
CLIP = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=TILE,
    patch_size=PATCH,
    projection_dim=32,
    vocab_size=VOCAB,
)
SIGLIP = dict(
    hidden_size=144,
    image_size=TILE,
    intermediate_size=112,
    num_attention_heads=2,
    num_hidden_layers=2,
    patch_size=PATCH,
    vision_use_head=False,
)
CLIP_PREPROCESSOR = dict(
    crop_size=dict(height=TILE, width=TILE),
    do_center_crop=True,
    do_convert_rgb=True,
    do_normalize=True,
    do_rescale=True,
    do_resize=True,
    image_mean=CLIP_MEAN,
    image_processor_type="CLIPImageProcessor",
    image_std=CLIP_STD,
    processor_class="LlavaProcessor",
    resample=3,
    rescale_factor=0.00392156862745098,
    size=dict(shortest_edge=TILE),
)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]  # (height, width)
QWEN_PREPROCESSOR = dict(
    min_pixels=3136,
    max_pixels=10000,
    patch_size=PATCH,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
    image_processor_type="Qwen2VLImageProcessor",
    processor_class="Qwen2VLProcessor",
)
QWEN_IDS = dict(
    image_token_id=IMAGE_ID,
    video_token_id=VIDEO_ID,
    vision_start_token_id=VISION_START_ID,
    vision_end_token_id=VISION_END_ID,
)
MROPE_SECTION = [4, 6, 6]
QWEN_TEXT = text_shape(
    num_attention_heads=4,
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=1000000.0, mrope_section=MROPE_SECTION),
)
# transformers 5 takes a head of hidden / heads here, and so do the published files: 4 heads of 32.
QWEN_TEXT["hidden_size"] = 128


def older_text(architecture: str, model_type: str, text: dict, **more: object) -> dict:
    """A text_config that says little: transformers 4 left out what its defaults say."""
    shape = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps")
    return dict(
        architectures=[architecture],
        **{key: text[key] for key in shape},
        max_position_embeddings=COMMON["max_position_embeddings"],
        model_type=model_type,
        torch_dtype="bfloat16",
        vocab_size=VOCAB,
        **more,
    )


def older_llava(architecture: str, text: dict, vision: dict, **more: object) -> dict:
    """The outer fields of the llava-hf checkpoints."""
    fields = dict(
        architectures=[architecture],
        ignore_index=-100,
        image_token_index=IMAGE_ID,
        model_type="llava",
        projector_hidden_act="gelu",
        text_config=text,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        transformers_version="4.36.0.dev0",
        vision_config=vision,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return fields | more


def older_qwen(architecture: str, model_type: str, vision: dict) -> dict:
    """A flat file: the text model's fields stand outside."""
    return dict(
        architectures=[architecture],
        attention_dropout=0.0,
        vision_start_token_id=VISION_START_ID,
        vision_end_token_id=VISION_END_ID,
        vision_token_id=VISION_ID,
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        hidden_act="silu",
        hidden_size=QWEN_TEXT["hidden_size"],
        initializer_range=0.02,
        intermediate_size=QWEN_TEXT["intermediate_size"],
        max_position_embeddings=COMMON["max_position_embeddings"],
        max_window_layers=2,
        model_type=model_type,
        num_attention_heads=QWEN_TEXT["num_attention_heads"],
        num_hidden_layers=QWEN_TEXT["num_hidden_layers"],
        num_key_value_heads=QWEN_TEXT["num_key_value_heads"],
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=64,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        transformers_version="4.41.2",
        use_cache=True,
        use_sliding_window=False,
        vision_config=vision,
        rope_scaling=dict(type="mrope", mrope_section=MROPE_SECTION),
        vocab_size=VOCAB,
    )


def clip_file() -> dict:
    """vision_config of the llava-hf checkpoints: no hidden_act, layer_norm_eps or attention_dropout."""
    return CLIP | dict(model_type="clip_vision_model")


MISTRAL = text_shape(num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))
QWEN2 = text_shape(
    num_key_value_heads=1,
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
    use_sliding_window=False,
)
QWEN2_VL_VISION = dict(depth=2, embed_dim=80, mlp_ratio=2, num_heads=1, hidden_size=QWEN_TEXT["hidden_size"])
QWEN2_5_VL_VISION = dict(
    depth=3,
    hidden_size=64,
    intermediate_size=96,
    num_heads=2,
    out_hidden_size=QWEN_TEXT["hidden_size"],
    window_size=56,
    fullatt_block_indexes=[1],
    tokens_per_second=2,
)
VISION_PATCHES = dict(patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
OLDER_VISION_PATCHES = VISION_PATCHES | dict(spatial_patch_size=PATCH, in_chans=3)

CASES = (
    VisionCase(
        name="llava",
        model_type="llava",
        text=dict(model_type="llama") | text_shape(),
        vision=dict(model_type="clip_vision_model") | CLIP,
        more=dict(image_token_index=IMAGE_ID, image_seq_length=16),
        older=older_llava(
            "LlavaForConditionalGeneration",
            older_text("LlamaForCausalLM", "llama", text_shape()),
            clip_file(),
            vocab_size=VOCAB,
        ),
        preprocessor=CLIP_PREPROCESSOR,
        processor="CLIPImageProcessorPil",
        older_processor=dict(
            image_token="<image>",
            num_additional_image_tokens=1,
            patch_size=PATCH,
            processor_class="LlavaProcessor",
            vision_feature_select_strategy="default",
        ),
        pictures=dict(exact=(56, 56), wide=(117, 80), tall=(31, 43)),
        pairs=("wide", "exact"),
        long_picture="exact",
    ),
    VisionCase(
        name="qwen2_vl",
        model_type="qwen2_vl",
        text=QWEN_TEXT,
        vision=QWEN2_VL_VISION | VISION_PATCHES,
        more=QWEN_IDS,
        older=older_qwen("Qwen2VLForConditionalGeneration", "qwen2_vl", QWEN2_VL_VISION | OLDER_VISION_PATCHES),
        preprocessor=QWEN_PREPROCESSOR,
        processor="Qwen2VLImageProcessorPil",
        older_processor=None,
        pictures=dict(exact=(84, 56), large=(150, 97), small=(30, 40)),
        pairs=("small", "large"),
        long_picture="exact",
    ),
    VisionCase(
        name="llava_next",
        model_type="llava_next",
        text=dict(model_type="mistral", sliding_window=None) | MISTRAL,
        vision=dict(model_type="clip_vision_model") | CLIP,
        more=dict(image_token_index=IMAGE_ID, image_seq_length=16, image_grid_pinpoints=PINPOINTS),
        older=older_llava(
            "LlavaNextForConditionalGeneration",
            older_text(
                "MistralForCausalLM",
                "mistral",
                MISTRAL,
                num_key_value_heads=1,
                rope_theta=1000000.0,
                sliding_window=None,
            ),
            clip_file(),
            image_grid_pinpoints=PINPOINTS,
            model_type="llava_next",
            transformers_version="4.39.0.dev0",
            use_image_newline_parameter=True,
            vocab_size=VOCAB,
        ),
        preprocessor=CLIP_PREPROCESSOR
        | dict(
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=PINPOINTS,
            image_processor_type="LlavaNextImageProcessor",
            processor_class="LlavaNextProcessor",
        ),
        processor="LlavaNextImageProcessorPil",
        older_processor=dict(
            image_token="<image>",
            num_additional_image_tokens=1,
            patch_size=PATCH,
            processor_class="LlavaNextProcessor",
            vision_feature_select_strategy="default",
        ),
        # 2 tiles; 3 tiles with two columns of padding to cut; 2 tiles above each other with padding too narrow to cut.
        pictures=dict(exact=(112, 56), wide=(150, 60), tall=(50, 90)),
        pairs=("wide", "tall"),
    ),
    VisionCase(
        name="llava_interleave",
        model_type="llava",
        text=dict(model_type="qwen2") | QWEN2,
        vision=dict(model_type="siglip_vision_model") | SIGLIP,
        more=dict(
            image_token_index=IMAGE_ID,
            image_seq_length=16,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        older=older_llava(
            "LlavaForConditionalGeneration",
            older_text(
                "Qwen2ForCausalLM",
                "qwen2",
                QWEN2,
                max_window_layers=1,
                num_key_value_heads=1,
                rope_theta=1000000.0,
                sliding_window=64,
                use_sliding_window=False,
            ),
            SIGLIP | dict(model_type="siglip_vision_model"),
            transformers_version="4.41.0.dev0",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        preprocessor=dict(
            do_normalize=True,
            do_rescale=True,
            do_resize=True,
            image_mean=[0.5, 0.5, 0.5],
            image_processor_type="SiglipImageProcessor",
            image_std=[0.5, 0.5, 0.5],
            processor_class="LlavaProcessor",
            resample=3,
            rescale_factor=0.00392156862745098,
            size=dict(height=TILE, width=TILE),
        ),
        processor="SiglipImageProcessorPil",
        older_processor=dict(
            image_token="<image>",
            num_additional_image_tokens=0,
            patch_size=PATCH,
            processor_class="LlavaProcessor",
            vision_feature_select_strategy="full",
        ),
        pictures=dict(exact=(56, 56), wide=(117, 80)),
        pairs=("wide", "exact"),
    ),
    VisionCase(
        name="qwen2_5_vl",
        model_type="qwen2_5_vl",
        text=QWEN_TEXT,
        vision=QWEN2_5_VL_VISION | VISION_PATCHES,
        more=QWEN_IDS,
        older=older_qwen(
            "Qwen2_5_VLForConditionalGeneration",
            "qwen2_5_vl",
            QWEN2_5_VL_VISION | OLDER_VISION_PATCHES | dict(hidden_act="silu"),
        ),
        preprocessor=QWEN_PREPROCESSOR | dict(max_pixels=12544, processor_class="Qwen2_5_VLProcessor"),
        processor="Qwen2VLImageProcessorPil",
        older_processor=None,
        # 3 x 5 merged patches: windows of 2 x 2 are cut short at two edges.
        pictures=dict(exact=(140, 84), small=(30, 40)),
        pairs=("small", "exact"),
    ),
)


def published_name(name: str) -> str:
    """What the published checkpoint calls the weight that transformers 5 saves as `name`."""
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def module_name(case: VisionCase, name: str) -> str:
    """What the module of transformers 5 calls the weight that it saves as `name`."""
    if name in ("lm_head.weight", "language_model.lm_head.weight"):
        return "lm_head.weight"
    if case.wraps_pictures:
        return re.sub(r"^model\.", "model.language_model.", name) if name.startswith("model.") else f"model.{name}"
    return "model." + name.replace("language_model.model.", "language_model.", 1)
