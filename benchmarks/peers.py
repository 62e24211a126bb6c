"""The same Vision Transformer three times: ours, timm's and transformers', with the same weights in each."""

import timm
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ViTConfig

from vit.checkpoints.canonical import from_ours
from vit.models.classifier import Classifier


def timm_twin(ours: Classifier, variant: str) -> nn.Module:
    """timm's `vit_VARIANT_patch16_224` for our image size, holding our weights; in evaluation mode."""
    height, width = ours.encoder.architecture["image_size"]
    twin = timm.create_model(f"vit_{variant}_patch16_224", img_size=(height, width), num_classes=ours.num_classes)
    twin.load_state_dict(from_ours(ours.state_dict(), ours.pool))
    return twin.eval()


class TransformersTwin(nn.Module):
    """transformers' `ViTForImageClassification` through fused attention, holding our weights.

    (B, 3, img_h, img_w) -> (B, num_classes) logits.
    """

    def __init__(self, ours: Classifier):
        super().__init__()
        shape = ours.encoder.architecture
        config = ViTConfig(
            image_size=shape["image_size"][0],
            patch_size=shape["patch_size"][0],
            hidden_size=shape["embed_dim"],
            intermediate_size=4 * shape["embed_dim"],
            num_hidden_layers=shape["depth"],
            num_attention_heads=shape["num_heads"],
            num_labels=ours.num_classes,
            layer_norm_eps=1e-6,
        )
        self.model = AutoModelForImageClassification.from_config(config, attn_implementation="sdpa")
        self.model.load_state_dict(to_transformers(ours.state_dict()))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


# (ours, transformers'): parts of a key.
PARTS = (
    ("encoder.embed.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("encoder.embed.cls_token", "vit.embeddings.cls_token"),
    ("encoder.embed.pos_embed", "vit.embeddings.position_embeddings"),
    ("encoder.blocks.", "vit.layers."),
    ("encoder.norm.", "vit.layernorm."),
    ("head.", "classifier."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
)


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under transformers' names: q, k and v apart, and a zero position for the class token."""
    tensors = {}
    for name, value in state.items():
        for ours, theirs in PARTS:
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                tensors[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows
        elif name.endswith("position_embeddings"):
            tensors[name] = torch.cat([value.new_zeros(1, 1, value.shape[2]), value], dim=1)
        else:
            tensors[name] = value
    return tensors
