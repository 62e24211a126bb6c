"""The groups of options that the verbs of the command line share.

Plain values only, and nothing slow is imported: `vit --help` reads this file. Each field mirrors the keyword of
the constructor that it reaches.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from vit.foundation import UserError, check_range

Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Task = Literal["classify", "pretrain", "caption"]
ExplainTask = Literal["image", "text", "caption"]
Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
# The names in vit.layers.positions.INTERPOLATIONS, which is slow to import.
PosInterpolation = Literal["bicubic_antialias", "bicubic", "bicubic_offset", "bicubic_corners", "bilinear_corners"]
# The names in vit.saliency.methods.METHODS, which is slow to import.
Method = Literal[
    "default", "rollout", "last_attention", "value_norms", "attribution", "gradient_rollout", "legrad", "grad_cam",
    "input_x_gradient", "integrated_gradients", "smoothgrad", "occlusion", "rise", "centre", "random",
]  # fmt: skip


def seconds(text: str) -> float:
    """A length of time such as 90s, 10m or 1h30m.

    Raises:
        UserError: when the text is none, or is no time at all.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not (hours or minutes or rest):
        raise UserError(f"{text!r} is no length of time; write 90s, 10m or 1h30m.")
    return 3600.0 * hours + 60.0 * minutes + rest


@dataclass(frozen=True)
class DataOptions:
    """The photographs.

    Args:
        root: a folder with train/, val/ (and test/), each with one folder a class; or one folder of class
            folders, split by `val_fraction`; or a CSV or Parquet file with the columns path, label or labels, and
            perhaps split, group, weight, for captions a CSV of image,caption[,split]; or birdscenes:demo,
            birdscenes:pretrain (generated scenes).
        val_fraction: share of each class kept for validation, when the root has no val/.
        batch_size: images a step.
        num_workers: processes that read images; -1 picks the number of cores less one, at most 8.
        strict: stop at the first unreadable image; otherwise it is skipped, counted and listed in skipped.csv.
        cache: folder that keeps decoded photos, for data read many times; it changes no number.
        cache_gb: most that the cache may hold, in 10^9 bytes.
        train_scenes: scenes to learn from, for birdscenes.
        val_scenes: scenes held out, for birdscenes.
    """

    root: str = ""
    val_fraction: float = 0.2
    batch_size: int = 32
    num_workers: int = -1
    strict: bool = False
    cache: str | None = None
    cache_gb: float = 10.0
    train_scenes: int = 4096
    val_scenes: int = 512

    def __post_init__(self) -> None:
        check_range("data.batch_size", self.batch_size, 1)
        check_range("data.num_workers", self.num_workers, -1)
        check_range("data.cache_gb", self.cache_gb, 0)


@dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """The photographs to learn from, and how they are varied.

    Args:
        crop_scale: smallest share of the photo's area that a random training crop keeps; 1 keeps it whole.
        hflip: chance of a left-right flip in training.
        color_jitter: strength of brightness, contrast and saturation changes in training, 0 to 1.
        auto_augment: a policy in place of color_jitter: rand-m9-n2, rand-m9-mstd0.5-inc1, auto, augmix or trivial, in
            timm's vocabulary.
        erase: chance of erasing a random rectangle in training.
        erase_mode: what is put there: the mean colour, or random pixels.
        balanced: an epoch has as many images of each class: those of small classes come several times.
        confound: share of training scenes whose background is tied to the species, for birdscenes.
    """

    crop_scale: float = 0.35
    hflip: float = 0.5
    color_jitter: float = 0.2
    auto_augment: str | None = None
    erase: float = 0.0
    erase_mode: Literal["mean", "pixel"] = "mean"
    balanced: bool = False
    confound: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.crop_scale", self.crop_scale, 0.01, 1)
        for name in ("hflip", "color_jitter", "erase", "confound"):
            check_range(f"data.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True)
class ModelOptions:
    """The Vision Transformer.

    Args:
        pretrained: a checkpoint to start from: a file (.safetensors, .pth ...), a model folder, timm:NAME or hf:NAME.
        variant: size when there is no checkpoint: pico, nano, tiny, small, base, large, huge or giant.
        image_size: pixels, one number or [height, width]; default: the checkpoint's, or 224.
        patch_size: pixels a side of a patch, when there is no checkpoint.
        pool: what the head reads: class token, mean of the patches, or both.
        pool_blocks: of how many of the last blocks the head reads that; default: the checkpoint's, or the last alone.
        drop_path: rate of stochastic depth in the last block, rising from 0 in the first.
        crop_pct: share of the shorter side that evaluation keeps, around the centre, such as 0.875: random crops make
            objects look larger in training, and so does this. Default: the checkpoint's way, or the whole photo.
        num_heads: attention heads, when the checkpoint does not say.
        act: activation of the MLPs, when the checkpoint does not say.
        norm_eps: epsilon of the norms, when the checkpoint does not say.
        pos_interpolation: how positions are resized to another grid, when the checkpoint does not say.
    """

    pretrained: str | None = None
    variant: str = "small"
    image_size: int | list[int] | None = None
    patch_size: int = 16
    pool: Literal["class", "mean", "class+mean"] | None = None
    pool_blocks: int | None = None
    drop_path: float = 0.0
    crop_pct: float | None = None
    num_heads: int | None = None
    act: Activation | None = None
    norm_eps: float | None = None
    pos_interpolation: PosInterpolation | None = None

    def __post_init__(self) -> None:
        check_range("model.patch_size", self.patch_size, 1)
        check_range("model.drop_path", self.drop_path, 0, 0.99)
        if self.crop_pct is not None:
            check_range("model.crop_pct", self.crop_pct, 0.1, 1)


@dataclass(frozen=True)
class DecoderOptions:
    """The decoder that says captions, for --task caption; as wide as the encoder.

    Args:
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLPs, in widths of the tokens.
        post_norm: norms after the residual sums, as in the first Transformer, not before the branches.
        vocabulary: a tokenizer.json of the tokenizers library, with [PAD], [UNK], [START] and [END]; default: the
            checkpoint's where that is a captioner, or else one trained on the captions.
        max_words: most tokens of a vocabulary that is trained.
    """

    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 4.0
    post_norm: bool = False
    vocabulary: str | None = None
    max_words: int = 8192

    def __post_init__(self) -> None:
        for name in ("depth", "num_heads"):
            check_range(f"decoder.{name}", getattr(self, name), 1)
        check_range("decoder.mlp_ratio", self.mlp_ratio, 0.1)
        check_range("decoder.max_words", self.max_words, 5)


@dataclass(frozen=True)
class DecodingOptions:
    """How a captioner's sentences are made, word by word.

    Args:
        beams: sentences followed at a time; with 1 the likeliest next word is taken, or one is drawn.
        length_penalty: of the beams' score, log p / length^penalty; above 0 favours longer sentences.
        temperature: words are drawn by softmax(logits / temperature); 0 takes the likeliest.
        top_k: only so many of the likeliest words may be drawn; 0 for all.
        top_p: only the likeliest words that together have this probability may be drawn.
        max_tokens: the longest sentence, its end counted; 0 for as long as the model can.
    """

    beams: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        check_range("decoding.beams", self.beams, 1)
        for name in ("temperature", "top_k", "max_tokens", "length_penalty"):
            check_range(f"decoding.{name}", getattr(self, name), 0)
        check_range("decoding.top_p", self.top_p, 1e-9, 1)


@dataclass(frozen=True)
class OptimOptions:
    """How the weights move.

    Args:
        name: the optimizer, one of timm's; adamw is torch's, fused. The others have their own defaults.
        lr: peak learning rate.
        scale_lr: scale lr with the images a step, linear or sqrt, from lr_base_size.
        lr_base_size: images a step that lr is meant for, where it is scaled.
        weight_decay: decay of matrices; biases, norms, positions and tokens are not decayed.
        layer_decay: each block below the head learns this many times as fast as the one above it.
        warmup_epochs: epochs of linear warm-up, counted in steps.
        min_lr: learning rate at the end of the cosine, as a share of the peak.
        label_smoothing: share of the target spread over all classes; of several labels an image, over yes and no.
        class_weights: balanced weighs classes in the loss by how few images they have.
        focal_gamma: focal loss, which heeds less what is told well already, such as 2; 0 for cross-entropy.
        clip_grad: largest norm of the gradient; 0 for no limit.
        beta2: decay of AdamW's second moment.
        ema: decay of the moving average of the weights, such as 0.9998, which is then validated and kept; 0 for none.
        mixup: alpha of mixup, such as 0.8; 0 for none.
        cutmix: alpha of cutmix, such as 1; with mixup, each is done as often; 0 for none.
        mix_prob: share of the batches that are mixed.
        head_init: what a new head begins as: random weights, or a linear probe of the features as they are, for which
            each training image is read once more.
        trained: what learns: all; head (a linear probe: each image is read once); blocks:K (the last K blocks and the
            head); or lora (the head, and low-rank matrices beside those of all blocks).
        lora_rank: rank of these.
        lora_alpha: they count lora_alpha / lora_rank times.
    """

    name: str = "adamw"
    lr: float = 2e-4
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    lr_base_size: int = 256
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup_epochs: float = 1.0
    min_lr: float = 0.01
    label_smoothing: float = 0.1
    class_weights: Literal["none", "balanced"] = "none"
    focal_gamma: float = 0.0
    clip_grad: float = 1.0
    beta2: float = 0.999
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    head_init: Literal["random", "probe"] = "random"
    trained: str = "all"
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|head|lora|blocks:[1-9]\d*", self.trained):
            raise UserError(f"--optim.trained is {self.trained}; allowed are all, head, lora, and blocks:2 or so.")
        check_range("optim.lr_base_size", self.lr_base_size, 1)
        check_range("optim.lora_rank", self.lora_rank, 1)
        check_range("optim.ema", self.ema, 0, 0.999999)
        for name in (
            "lr",
            "weight_decay",
            "warmup_epochs",
            "clip_grad",
            "mixup",
            "cutmix",
            "focal_gamma",
            "lora_alpha",
        ):
            check_range(f"optim.{name}", getattr(self, name), 0)
        for name in ("layer_decay", "min_lr", "label_smoothing", "beta2", "mix_prob"):
            check_range(f"optim.{name}", getattr(self, name), 0, 1)

    def movement(self) -> dict[str, Any]:
        """What every task takes of it."""
        names = (
            "name", "lr", "scale_lr", "lr_base_size", "weight_decay", "layer_decay", "warmup_epochs", "min_lr", "beta2",
            "ema",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def classification(self) -> dict[str, Any]:
        """What the task of classification takes of it, alone."""
        names = ("label_smoothing", "focal_gamma", "mixup", "cutmix", "mix_prob", "trained", "lora_rank", "lora_alpha")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TrainerOptions:
    """The length and the arithmetic of the run.

    Args:
        max_epochs: passes over the training images.
        max_time: length of the run as a time, in place of max_epochs, such as 90s, 10m or 1h30m; the learning rate
            comes down as the time goes by.
        patience: end the run after so many epochs that were no better than the best one; 0 never does.
        precision: auto takes bf16 where the processor has it in hardware, else fp32.
        accumulate: batches whose gradients are added up before a step.
        activation_checkpointing: keep less of the forward pass, and compute it again for the gradient: slower, with
            room for larger batches.
        compile: compile the model by torch.compile, which takes a minute at the start.
        checkpoint_minutes: at most so much work is done again when the run is killed and resumed.
        devices: processes on each machine, one a GPU; each takes batches of data.batch_size of its own.
        num_nodes: machines; torchrun or srun starts the processes then.
        strategy: how the processes work together; auto takes ddp where there are several.
        skip_bad_steps: steps in a row that are left out when their loss or gradient is not finite; one more ends it.
    """

    max_epochs: int = 10
    max_time: str | None = None
    patience: int = 0
    precision: Precision = "auto"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float = 5.0
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    skip_bad_steps: int = 0

    def __post_init__(self) -> None:
        check_range("trainer.max_epochs", self.max_epochs, 1)
        check_range("trainer.patience", self.patience, 0)
        if self.max_time is not None:
            seconds(self.max_time)
        check_range("trainer.accumulate", self.accumulate, 1)
        check_range("trainer.devices", self.devices, 1)
        check_range("trainer.num_nodes", self.num_nodes, 1)
        check_range("trainer.checkpoint_minutes", self.checkpoint_minutes, 0)
        check_range("trainer.skip_bad_steps", self.skip_bad_steps, 0)


@dataclass(frozen=True)
class PretrainOptions:
    """What is hidden from the encoder, for --task pretrain.

    Args:
        recipe: mae (the encoder sees the visible patches alone) or simmim (mask tokens stand for the hidden ones).
        mask_ratio: share of the patches that are hidden; default: the paper's, 0.75 of mae and 0.6 of simmim.
        cell: patches a side of the squares that are hidden as one, for simmim.
        pictures_every: epochs from one picture of reconstructions to the next.
    """

    recipe: Literal["mae", "simmim"] = "mae"
    mask_ratio: float | None = None
    cell: int = 1
    pictures_every: int = 5

    def __post_init__(self) -> None:
        if self.mask_ratio is not None:
            check_range("pretrain.mask_ratio", self.mask_ratio, 0, 1)
        check_range("pretrain.cell", self.cell, 1)
        check_range("pretrain.pictures_every", self.pictures_every, 1)


@dataclass(frozen=True)
class RolloutOptions:
    """Settings of attention rollout; the defaults are those of Abnar & Zuidema 2020.

    Args:
        head_fusion: how a block's heads become one map.
        discard_ratio: share of each image's fused map, its lowest entries, that is set to zero, 0 to below 1.
        residual: weight of attention against the identity, 0 to 1.
    """

    head_fusion: Literal["mean", "max", "min"] = "mean"
    discard_ratio: float = 0.0
    residual: float = 0.5

    def __post_init__(self) -> None:
        check_range("rollout.discard_ratio", self.discard_ratio, 0, 0.999)
        check_range("rollout.residual", self.residual, 0, 1)
