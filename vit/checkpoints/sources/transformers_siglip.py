"""transformers' SigLIP: its image tower, with the head that pools by attention."""

from vit.checkpoints.sources.source import Converted, Source, Tensors, leave_out, unprefixed
from vit.checkpoints.sources.transformers_clip import PATCHES, PREFIXES, UNUSED, as_canonical
from vit.foundation import UserError

POOL_TABLE = (
    ("head.probe", "attn_pool.latent"),
    ("head.attention.out_proj.", "attn_pool.proj."),
    ("head.layernorm.", "attn_pool.norm."),
    ("head.mlp.", "attn_pool.mlp."),
)


def recognises(tensors: Tensors) -> bool:
    found = unprefixed(tensors, PATCHES, PREFIXES) or {}
    named = {"embeddings.position_embedding.weight", "post_layernorm.weight"} <= found.keys()
    return named and "embeddings.class_embedding" not in found


def convert(tensors: Tensors) -> Converted:
    """The model for classification reads the mean of the tokens, not the result of the pooling head."""
    classifies = "classifier.weight" in tensors
    tensors = unprefixed(tensors, PATCHES, PREFIXES) or {}
    if tensors[PATCHES].ndim == 2:
        raise UserError(
            "The checkpoint is a SigLIP 2 that takes images of any aspect ratio (NaFlex), which is not known here.\n"
            "Allowed are those of a fixed resolution, such as google/siglip2-base-patch16-224."
        )
    unused = UNUSED | ({"head.": "attention pooling, which the classifier does not read"} if classifies else {})
    tensors, left_out = leave_out(tensors, unused)
    pooled, tensors = _pool(tensors)
    tensors = as_canonical(tensors) | pooled
    return Converted(tensors, left_out, pool="attention" if pooled else "mean")


def _pool(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """(The head's tensors with canonical names, the other tensors)."""
    pooled, rest = {}, dict(tensors)
    for theirs, ours in POOL_TABLE:
        for name in [name for name in rest if name.startswith(theirs)]:
            pooled[ours + name.removeprefix(theirs)] = rest.pop(name)
    for kind in ("weight", "bias"):
        if f"head.attention.in_proj_{kind}" in rest:
            both = rest.pop(f"head.attention.in_proj_{kind}")  # queries, keys, values
            width = both.shape[0] // 3
            pooled[f"attn_pool.q.{kind}"], pooled[f"attn_pool.kv.{kind}"] = both[:width], both[width:]
    return pooled, rest


TRANSFORMERS_SIGLIP = Source(
    name="transformers SigLIP",
    models="SiglipVisionModel with and without its head, SiglipModel, SiglipForImageClassification; SigLIP 2 alike",
    recognised_by="embeddings.patch_embedding.weight, embeddings.position_embedding.weight, no class_embedding",
    tested="transformers' own classes, every parameter random: tokens, pooled output and logits, also at other sizes",
    limits="the text tower is left out; SigLIP 2 with images of any aspect ratio (NaFlex) is refused",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-6, "act": "gelu_tanh", "pos_interpolation": "bicubic"},
)
