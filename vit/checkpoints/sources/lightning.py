"""Our own training checkpoints: the state dict of the task, with the names of our modules."""

from vit.checkpoints import canonical
from vit.checkpoints.sources.source import Converted, Source, Tensors

PATCHES = "encoder.embed.patch_embed.proj.weight"
CLASSIFIER = ("encoder.", "attn_pool.", "fc_norm.", "head.")


AVERAGE = "average.module."  # a run with a moving average of its weights is judged by it


def recognises(tensors: Tensors) -> bool:
    return PATCHES in tensors or f"model.{PATCHES}" in tensors


def convert(tensors: Tensors) -> Converted:
    if f"{AVERAGE}{PATCHES}" in tensors:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("model.")}
    if any(".lora_A." in name for name in tensors):
        raise ValueError(
            "the run learns by LoRA, and the file does not say how its adapters count; give its model folder"
        )
    prefix = next(prefix for prefix in ("", AVERAGE, "model.") if f"{prefix}{PATCHES}" in tensors)
    model = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    # Pretraining and captions have a decoder, or a mask token, beside the encoder; the head is then none of classes.
    classifier = all(name.startswith(CLASSIFIER) for name in model)
    kept = model if classifier else {name: model[name] for name in model if name.startswith("encoder.")}
    beside = [name for name in tensors if name.removeprefix(prefix) not in kept or not name.startswith(prefix)]
    told = (f"{beside[0]} ... ({len(beside)} tensors, not of an encoder or a classifier)",) if beside else ()
    return Converted(canonical.from_ours(kept, "class"), told)


def merge_adapters(tensors: Tensors, scale: float) -> Tensors:
    """The tensors of a run by LoRA, under peft's names, with `scale` times B A added to each matrix (Hu et al. 2022,
    equation 3), under the names of a run without.

    Raises:
        KeyError: where a matrix has no adapter.
    """
    merged = {}
    for name, value in tensors.items():
        stem, layer, own = name.partition(".base_layer.")
        if layer and own == "weight":
            a, b = (tensors[f"{stem}.lora_{which}.default.weight"] for which in "AB")
            value = value.float() + scale * (b.float() @ a.float())  # of half precision, too: it is rounded once
        if ".lora_" not in name:
            merged[f"{stem}.{own}" if layer else name] = value
    return merged


LIGHTNING = Source(
    name="vit's checkpoints",
    models="last.ckpt and best.ckpt of a run; of pretraining and captions the encoder",
    recognised_by="model.encoder.embed.patch_embed.proj.weight",
    tested="the logits of the model that was saved",
    limits="of checkpoints without the key vitscope, labels, preprocessing and what is assumed must be given",
    recognises=recognises,
    convert=convert,
)
