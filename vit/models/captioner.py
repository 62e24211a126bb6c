"""Captioning: the shared encoder looks at the image, a decoder says what it sees, word by word.

B batch, T tokens of text, V vocab_size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.models.classifier import Preprocessing
from vit.models.decoder import Decoder
from vit.models.encoder import Encoder
from vit.models.generation import Generated, GenerationOptions, generate


class Captioner(nn.Module):
    """An image encoder and a decoder that attends to its tokens (Vaswani et al. 2017, figure 1, images for one text).

    Args:
        encoder: images to tokens.
        decoder: one whose context is as wide as the encoder's tokens.
        start, end, pad: ids of the tokens that stand before a text, after it, and for nothing.
        tokenizer: the vocabulary, as JSON of the tokenizers library; kept to be written beside the weights.
        preprocessing: what the images went through before they come here.

    Raises:
        ValueError: when the decoder asks for another width, or the three ids are not three of its vocabulary.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        start: int,
        end: int,
        pad: int,
        tokenizer: str = "",
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        vocab_size, width = decoder.head.out_features, decoder.context_dim
        if width != encoder.embed_dim:
            raise ValueError(f"the encoder's tokens are {encoder.embed_dim} wide, but the decoder's context is {width}")
        if len({start, end, pad}) < 3 or not 0 <= min(start, end, pad) <= max(start, end, pad) < vocab_size:
            raise ValueError(f"start {start}, end {end} and pad {pad} must be three of the ids 0 to {vocab_size - 1}")
        self.encoder = encoder
        self.decoder = decoder
        self.start, self.end, self.pad = start, end, pad
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing or Preprocessing(encoder.architecture["image_size"])

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each token; the decoder is shown the right ones ("teacher forcing").

        Args:
            images: (B, in_chans, img_h, img_w).
            ids: (B, T), each text with its start token, then padding. No token of a text sees padding behind it.
        """
        return self.decoder(ids, self.encoder(images))

    def loss(self, images: Tensor, ids: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean over all tokens of -log p(token | those before it, image), padding not counted.

        Args:
            ids: (B, T), each text from its start token to its end token, then padding.
            label_smoothing: share of each target that is spread over the vocabulary (Vaswani et al. 2017, section 5.4).
        """
        logits, targets = self(images, ids[:, :-1]), ids[:, 1:]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=self.pad, label_smoothing=label_smoothing
        )

    def generate(
        self, images: Tensor, options: GenerationOptions | None = None, *, generator: torch.Generator | None = None
    ) -> Generated:
        """A caption for each image; see `vit.models.generation`. Call `eval()` first, where the encoder drops paths."""
        with torch.no_grad():
            context = self.encoder(images)
        prompt = torch.full((len(images), 1), self.start, device=images.device)
        options = options or GenerationOptions(max_tokens=self.decoder.max_tokens)
        return generate(self.decoder, context, prompt, end=self.end, pad=self.pad, options=options, generator=generator)
