"""What many tests need: a fixed seed, tiny models of timm whose every parameter is random, and the same as ours."""

import pytest
import torch

torch.set_num_threads(1)  # for tiny models a second thread costs more than it brings, on a busy machine many times more


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomise():
    """Makes every parameter random: biases, norms, layer scales and tokens too, which fresh models hold at 0 or 1."""

    def apply(model, std=0.5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=std)
        return model.eval()

    return apply


@pytest.fixture(scope="session")
def timm_vit(randomise):
    """A tiny random Vision Transformer of timm; keywords as VisionTransformer takes them, and `distilled`."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    def build(*, distilled=False, **keywords):
        sizes = {"img_size": 14, "patch_size": 7, "embed_dim": 22, "depth": 3, "num_heads": 2, "num_classes": 5}
        return randomise((VisionTransformerDistilled if distilled else VisionTransformer)(**{**sizes, **keywords}))

    return build


@pytest.fixture
def as_ours(tmp_path):
    """Our Classifier from a timm model, by way of a .safetensors file; options as `vit.load` takes them."""
    from safetensors.torch import save_file

    from vit.checkpoints.load import load

    def convert(model, **options):
        # The second head of a distilled model learns from a teacher; ours reads the class token alone.
        state = {name: value for name, value in model.state_dict().items() if not name.startswith("head_dist.")}
        save_file(state, tmp_path / "timm.safetensors")
        return load(tmp_path / "timm.safetensors", num_heads=model.blocks[0].attn.num_heads, **options).eval()

    return convert


@pytest.fixture
def walked_together(monkeypatch):
    """Walks whole batches, as on a GPU, not an image at a time."""
    from vit.saliency import walk

    one_part = walk._walk
    monkeypatch.setattr(walk, "_walk", lambda *walked: one_part(*walked[:-1], slice(None))[walked[-1]])


@pytest.fixture(scope="session")
def attention_maps():
    """The explicit attention weights (B, H, N, N) of each block of a timm model, in its graph, and its logits."""

    def run(model, images):
        maps = []
        hooks = []
        for block in model.blocks:
            block.attn.fused_attn = False
            hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, inputs, output: maps.append(output)))
        logits = model(images)
        for hook in hooks:
            hook.remove()
        return maps, logits

    return run
