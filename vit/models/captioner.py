"""Captioning: the shared encoder looks at the image, and a decoder describes it word by word.

B batch, T tokens of text, V vocab_size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.layers.positions import sincos_positions
from vit.models.classifier import Preprocessing
from vit.models.decoder import Decoder
from vit.models.encoder import Encoder
from vit.models.generation import Generated, GenerationOptions, generate


class Captioner(nn.Module):
    """An image encoder and a decoder that attends to its tokens (Vaswani et al. 2017, figure 1, images for one text).

    Args:
        encoder: images to tokens.
        decoder: a decoder whose context is as wide as the encoder's tokens.
        start, end, pad: ids of the start token, the end token and padding.
        tokenizer: the vocabulary, as JSON of the tokenizers library; kept to be saved with the weights.
        preprocessing: how photographs become the images that the model takes.
        context_positions: whether the decoder gets the position of each patch, see `context`.

    Raises:
        ValueError: when the decoder needs another width, the ids are not three different ones of its vocabulary, or
            the width has no `sincos_positions`.
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
        context_positions: bool = True,
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
        self.context_positions = context_positions
        if context_positions:
            sincos_positions(encoder.grid, encoder.embed_dim)  # raises now for a width that has none

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the next token after each token, given the true earlier ones ("teacher forcing").

        Args:
            images: (B, in_chans, img_h, img_w).
            ids: (B, T), each text with its start token, then padding. No token of a text attends to padding after it.
        """
        return self.decoder(ids, self.context(images))

    def context(self, images: Tensor) -> Tensor:
        """The tokens that the decoder attends to, (B, N, D): the encoder's tokens, with sines and cosines of their
        positions added to those of the patches (as in DETR, Carion et al. 2020, section 3.2).

        The tokens of an encoder that has learned to classify, also mirrored images, say little about where things are;
        without the positions, the decoder couldn't say "left of".
        """
        tokens = self.encoder(images)
        if not self.context_positions:
            return tokens
        places = sincos_positions(self.encoder.grid_of(images), self.encoder.embed_dim)
        return tokens + F.pad(places, (0, 0, self.encoder.num_prefix_tokens, 0)).to(tokens)

    def loss(self, images: Tensor, ids: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean over all tokens of -log p(token | earlier tokens, image), without padding.

        Args:
            images: (B, in_chans, img_h, img_w).
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
        """A caption for each image; see `vit.models.generation`. Call `eval()` first if the model has drop path."""
        with torch.no_grad():
            context = self.context(images)
        prompt = torch.full((len(images), 1), self.start, device=images.device)
        options = options or GenerationOptions(max_tokens=self.decoder.max_tokens)
        return generate(self.decoder, context, prompt, end=self.end, pad=self.pad, options=options, generator=generator)
