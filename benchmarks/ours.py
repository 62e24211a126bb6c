"""Our model as it is measured. Imports no peer, so that it can be measured without any."""

from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.variants import variant as keywords_of


def classifier(variant: str, image_size: int, num_classes: int = 1000) -> Classifier:
    """Our Classifier with random weights and patches of 16 px, in evaluation mode.

    Its positions are learned for `image_size`, so that no forward pass resizes them.
    """
    encoder = image_encoder(image_size=(image_size, image_size), patch_size=(16, 16), **keywords_of(variant))
    labels = [f"class {number}" for number in range(num_classes)]
    return Classifier(encoder, num_classes, labels=labels).eval()
