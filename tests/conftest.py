"""What many tests need: a fixed seed, tiny models of timm whose every parameter is random, and the same as ours; and
what the verbs are tried with, which no test may change: it is made once for all (tests/verbs.py has the rest)."""

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


@pytest.fixture
def vit(capsys):
    """Runs `vit` with words, given as one line or one by one."""
    import cli
    from tests.verbs import Ran

    def run(line, *words):
        capsys.readouterr()
        code = cli.main([*line.split(), *map(str, words)])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The model folder of `sees_bright`."""
    from tests.verbs import sees_bright
    from vit.checkpoints.folder import write_folder

    folder = tmp_path_factory.mktemp("seeing") / "model"
    write_folder(sees_bright(), folder)
    return folder


@pytest.fixture(scope="session")
def headless(tmp_path_factory):
    """The same without a head."""
    from tests.verbs import sees_bright
    from vit.checkpoints.folder import write_folder

    folder = tmp_path_factory.mktemp("headless") / "model"
    write_folder(sees_bright(0), folder)
    return folder


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """Six bright and six dark photos, a folder each."""
    from tests.verbs import all_bright, photo

    root = tmp_path_factory.mktemp("classes")
    for number in range(6):
        all_bright(root / "bright" / f"{number}.png")
        photo(root / "dark" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def trained(classes, tmp_path_factory):
    """The run folder of two epochs."""
    import cli
    from tests.verbs import TINY

    run = tmp_path_factory.mktemp("runs") / "first"
    assert cli.main(["train", *TINY.split(), *f"--data.root {classes} --trainer.max_epochs 2 --run {run}".split()]) == 0
    return run
