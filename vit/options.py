"""The groups of options that the verbs of the command line share.

Plain values only, and no slow imports: `vit --help` reads this file. Each field mirrors the keyword of the constructor
that it is passed to.
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
    """The seconds of a duration such as 90s, 10m or 1h30m.

    Raises:
        UserError: when the text is not such a duration, or is zero.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not (hours or minutes or rest):
        raise UserError(f"{text!r} is not a duration; write it as in 90s, 10m or 1h30m.")
    return 3600.0 * hours + 60.0 * minutes + rest


@dataclass(frozen=True)
class DataOptions:
    """The photographs.

    Args:
        root: a folder with train/, val/ (and test/), each with one folder per class; or a folder of class folders,
            split by val_fraction; or a CSV or Parquet file with the columns path and label (or labels), and optionally
            split, group and weight; for captions, a CSV with the columns image,caption[,split]; or birdscenes:demo or
            birdscenes:pretrain (generated scenes).
        val_fraction: share of each class kept for validation, 0 to 1, if the root has no val/.
        batch_size: images per batch, in each process.
        num_workers: processes that read images; -1 uses all cores but one, at most 8.
        strict: stop at the first unreadable image; otherwise it is skipped, counted and listed in skipped.csv.
        cache: folder to keep decoded photos in, which makes reading them again faster; results stay the same.
        cache_gb: maximum size of the cache in GB (10^9 bytes).
        train_scenes: number of training scenes, for birdscenes.
        val_scenes: number of validation scenes, for birdscenes.
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
    """The photographs to learn from, and how they are augmented.

    Args:
        crop_scale: smallest share of the photo's area that a random training crop keeps, 0.01 to 1; 1 keeps the whole
            photo.
        hflip: probability of a horizontal flip in training.
        color_jitter: strength of brightness, contrast and saturation changes in training, 0 to 1.
        auto_augment: an augmentation policy to use instead of color_jitter: rand-m9-n2, rand-m9-mstd0.5-inc1, auto,
            augmix or trivial; written as in timm.
        erase: probability of erasing a random rectangle in training.
        erase_mode: what an erased rectangle is filled with: the mean colour, or random pixels.
        balanced: draw equally many images of each class per epoch, repeating those of small classes.
        confound: share of the training scenes whose background depends on the species, for birdscenes.
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
        variant: size of a new model, if there is no checkpoint: pico, nano, tiny, small, base, large, huge or giant.
        image_size: size in pixels, one number or [height, width]; default: the checkpoint's, or 224.
        patch_size: side of a patch in pixels; the patches of a checkpoint are resized to it. Default: the
            checkpoint's, or 16.
        pool: what the head reads: the class token, the mean of the patches, or both; default: the checkpoint's, or
            class.
        pool_blocks: number of last blocks whose pooled tokens the head reads side by side; default: the checkpoint's,
            or 1.
        drop_path: stochastic depth: probability of skipping the last block's branches in training; it rises linearly
            from 0 in the first block.
        crop_pct: share of the shorter side that the central crop of evaluation keeps, such as 0.875: random training
            crops make objects look larger, and this crop does the same. Default: as the checkpoint says, or the whole
            photo.
        num_heads: attention heads, if the checkpoint does not say.
        act: activation of the MLPs, if the checkpoint does not say.
        norm_eps: epsilon of the norms, if the checkpoint does not say.
        pos_interpolation: how positions are resized to another grid, if the checkpoint does not say.
        trained_size: image size in pixels that the checkpoint was trained with, if it does not say; one number or
            [height, width].
    """

    pretrained: str | None = None
    variant: str = "small"
    image_size: int | list[int] | None = None
    patch_size: int | None = None
    pool: Literal["class", "mean", "class+mean"] | None = None
    pool_blocks: int | None = None
    drop_path: float = 0.0
    crop_pct: float | None = None
    num_heads: int | None = None
    act: Activation | None = None
    norm_eps: float | None = None
    pos_interpolation: PosInterpolation | None = None
    trained_size: int | list[int] | None = None

    def __post_init__(self) -> None:
        if self.patch_size is not None:
            check_range("model.patch_size", self.patch_size, 1)
        check_range("model.drop_path", self.drop_path, 0, 0.99)
        if self.crop_pct is not None:
            check_range("model.crop_pct", self.crop_pct, 0.1, 1)


@dataclass(frozen=True)
class DecoderOptions:
    """The decoder that writes captions, for --task caption; as wide as the encoder.

    Args:
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLPs, relative to the width of the tokens.
        post_norm: put the norms after the residual sums, as in the original Transformer, not before the branches.
        vocabulary: a tokenizer.json of the tokenizers library, with [PAD], [UNK], [START] and [END]; default: the
            checkpoint's if it is a captioner, otherwise one trained on the captions.
        max_words: maximum number of tokens in a vocabulary trained on the captions.
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
    """How a captioner generates sentences, word by word.

    Args:
        beams: sentences followed in parallel (beam search); with 1, the likeliest next word is taken, or one is
            sampled.
        length_penalty: penalty in the beams' score, log p / length^penalty; above 0 favours longer sentences.
        temperature: words are sampled from softmax(logits / temperature); 0 takes the likeliest.
        top_k: sample from this many of the likeliest words; 0 for all.
        top_p: sample from the likeliest words that together have this probability.
        max_tokens: maximum length of a sentence in tokens, including its end token; 0 for as long as the model can.
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
    """Optimizer settings.

    Args:
        name: the optimizer: adamw (torch's, fused) or any of timm's; those keep timm's defaults.
        lr: peak learning rate.
        scale_lr: scale lr with the number of images per step relative to lr_base_size: linearly, or with its square
            root.
        lr_base_size: images per step that lr is meant for, if it is scaled.
        weight_decay: weight decay of matrices; biases, norms, positions and tokens are not decayed.
        layer_decay: factor on the learning rate from each block to the one below it; 1 for the same everywhere.
        warmup_epochs: epochs of linear warm-up; fractions are allowed.
        min_lr: learning rate at the end of the cosine schedule, as a share of the peak.
        label_smoothing: share of the target that is spread over all classes; with several labels per image, over yes
            and no of each label.
        class_weights: balanced gives rare classes a larger weight in the loss.
        focal_gamma: gamma of the focal loss, such as 2, which gives well-classified images less weight; 0 for
            cross-entropy.
        clip_grad: maximum norm of the gradient; 0 for no limit.
        beta2: decay of AdamW's second moment.
        ema: decay of a moving average of the weights, such as 0.9998, which is then validated and saved in place of the
            weights; 0 for none.
        mixup: alpha of mixup, such as 0.8; 0 for none.
        cutmix: alpha of cutmix, such as 1; 0 for none. With mixup as well, either is used with equal probability.
        mix_prob: share of the batches that are mixed.
        head_init: start of a new head: random weights, or a linear probe of the features, which reads up to 10,000
            training images once beforehand.
        trained: what is trained: all; head (a linear probe, which reads each image only once); blocks:K (the last K
            blocks and the head); or lora (the head, and low-rank updates of the matrices in all blocks).
        lora_rank: rank of LoRA's matrices.
        lora_alpha: LoRA's update is scaled by lora_alpha / lora_rank.
        neighbours: share of the nearest training photographs in an image's probabilities, such as 0.5, if that helps.
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
    neighbours: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|head|lora|blocks:[1-9]\d*", self.trained):
            raise UserError(f"--optim.trained is {self.trained}; allowed are all, head, lora and blocks:K (blocks:2)")
        check_range("optim.lr_base_size", self.lr_base_size, 1)
        check_range("optim.lora_rank", self.lora_rank, 1)
        check_range("optim.ema", self.ema, 0, 0.999999)
        check_range("optim.neighbours", self.neighbours, 0, 0.99)
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
        """The settings that every task takes."""
        names = (
            "name", "lr", "scale_lr", "lr_base_size", "weight_decay", "layer_decay", "warmup_epochs", "min_lr", "beta2",
            "ema",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def classification(self) -> dict[str, Any]:
        """The settings that only classification takes."""
        names = ("label_smoothing", "focal_gamma", "mixup", "cutmix", "mix_prob", "trained", "lora_rank", "lora_alpha")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TrainerOptions:
    """The length and the precision of the run.

    Args:
        max_epochs: passes over the training images.
        max_time: length of the run as a duration such as 90s, 10m or 1h30m, instead of max_epochs; the learning rate
            then falls with the time spent.
        patience: stop after this many epochs without improvement; 0 never stops early.
        precision: auto uses bf16 where the hardware computes it faster, otherwise fp32.
        accumulate: batches whose gradients are summed up for one step.
        activation_checkpointing: recompute activations for the gradient instead of keeping them: slower, but leaves
            room for larger batches.
        compile: compile the model with torch.compile, which takes a minute or more at the start.
        checkpoint_minutes: minutes between checkpoints; a run that is killed and resumed repeats at most this much
            work.
        devices: processes per machine, one per GPU; each of them takes its own batches of data.batch_size.
        num_nodes: number of machines; with more than one, start the processes with torchrun or srun.
        strategy: with ddp (auto) each process has the whole model; fsdp spreads its weights over them.
        skip_bad_steps: skip up to this many steps in a row whose loss or gradient is not finite; one more ends the run.
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
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
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
        recipe: mae (the encoder sees only the visible patches) or simmim (mask tokens replace the hidden ones).
        mask_ratio: share of the patches that are hidden, between 0 and 1; default: the paper's, 0.75 for mae, 0.6 for
            simmim.
        cell: side, in patches, of the squares that are hidden as a whole, for simmim.
        pictures_every: draw a picture of reconstructions every this many epochs.
    """

    recipe: Literal["mae", "simmim"] = "mae"
    mask_ratio: float | None = None
    cell: int = 1
    pictures_every: int = 5

    def __post_init__(self) -> None:
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise UserError(
                f"--pretrain.mask_ratio is {self.mask_ratio}; it must lie between 0 and 1, such as 0.75:\n"
                "some patches are hidden, and some are seen."
            )
        check_range("pretrain.cell", self.cell, 1)
        check_range("pretrain.pictures_every", self.pictures_every, 1)


@dataclass(frozen=True)
class RolloutOptions:
    """Settings of attention rollout; the defaults are those of Abnar & Zuidema 2020.

    Args:
        head_fusion: how the attention maps of a block's heads are combined.
        discard_ratio: share of the entries of each fused map, the lowest ones, that is set to zero, 0 to 0.999.
        residual: weight of the attention against the identity (the residual connection), 0 to 1.
    """

    head_fusion: Literal["mean", "max", "min"] = "mean"
    discard_ratio: float = 0.0
    residual: float = 0.5

    def __post_init__(self) -> None:
        check_range("rollout.discard_ratio", self.discard_ratio, 0, 0.999)
        check_range("rollout.residual", self.residual, 0, 1)
