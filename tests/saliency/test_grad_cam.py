"""Grad-CAM against pytorch-grad-cam on the same weights."""

import pytest
import torch

from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency.explain import explain_batch

CLASSES = [4, 0, 2]


@pytest.mark.parametrize(
    ("prefix", "keywords"),
    [
        (1, {}),
        (0, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        (5, {"reg_tokens": 4, "no_embed_class": True}),
    ],
)
def test_equals_pytorch_grad_cam(timm_vit, as_ours, prefix, keywords):
    package = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is an extra for developers")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Unscaled(package.GradCAM):
        """The peer scales each map to 0..1 and enlarges it; `raw` is the map before."""

        def get_cam_image(self, *arguments):
            self.raw = super().get_cam_image(*arguments)
            return self.raw

    reference = timm_vit(dynamic_img_size=True, **keywords).double()
    images = torch.randn(3, 3, 21, 35, dtype=torch.float64)
    peer = Unscaled(
        model=reference,
        target_layers=[reference.blocks[-1].norm1],
        reshape_transform=lambda tokens: tokens[:, prefix:].transpose(1, 2).unflatten(2, (3, 5)),
    )
    peer(input_tensor=images, targets=[ClassifierOutputTarget(index) for index in CLASSES])
    expected = torch.from_numpy(peer.raw).clamp(min=0)
    found = explain_batch(as_ours(reference).double(), images, method="grad_cam", target=torch.tensor(CLASSES)).maps
    assert (expected > 0).any(dim=(1, 2)).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


def test_patches_count_where_the_head_reads_the_class_token(randomise):
    model = randomise(
        Classifier(image_encoder(image_size=(14, 21), patch_size=(7, 7), embed_dim=22, depth=3, num_heads=2), 5)
    )
    assert explain_batch(model, torch.randn(2, 3, 14, 21), method="grad_cam").maps.any()


def test_blocks_that_are_normalised_afterwards_are_refused():
    encoder = image_encoder(image_size=(14, 14), patch_size=(7, 7), embed_dim=22, depth=1, num_heads=2, post_norm=True)
    with pytest.raises(ValueError, match=r"grad_cam reads the norm before .* try method='attribution'"):
        explain_batch(Classifier(encoder, 3), torch.randn(1, 3, 14, 14), method="grad_cam")
