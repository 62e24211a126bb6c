"""Generation against the definition: one forward pass a token, all texts of a tiny vocabulary, counted draws."""

from itertools import product

import pytest
import torch

from vit.models.decoder import Decoder
from vit.models.generation import Generated, GenerationOptions, draw, generate

B, M, D, V = 5, 3, 12, 4
START, END, PAD = 0, 1, 2
LONGEST = 4


@pytest.fixture
def decoder(randomise):
    decoder = randomise(Decoder(V, 9, D, 2, 2).double(), std=0.6)
    with torch.no_grad():  # so that the next token depends on all before it, and texts have all lengths
        decoder.embed.token_embed.weight.mul_(4)
        decoder.head.bias.copy_(torch.tensor([0.0, -1.0, 0.0, 0.0]))
    return decoder


@pytest.fixture
def context():
    return torch.randn(B, M, D, dtype=torch.float64)


@pytest.fixture
def prompt():
    return torch.full((B, 1), START)


def run(decoder, context, prompt, **options) -> Generated:
    others = {name: options.pop(name) for name in ("prompt_mask", "context_mask", "generator") if name in options}
    chosen = GenerationOptions(**{"max_tokens": LONGEST, **options})
    return generate(decoder, context, prompt, end=END, pad=PAD, options=chosen, **others)


def texts(generated):
    return [row[mask].tolist() for row, mask in zip(generated.ids, generated.mask, strict=True)]


@torch.no_grad()
def log_probs(decoder, context, prompt, found):
    """Of texts of one length after one prompt, from one uncached forward pass."""
    ids = torch.tensor([prompt + text for text in found])
    scores = decoder(ids[:, :-1], context.expand(len(ids), -1, -1)).log_softmax(dim=-1)[:, len(prompt) - 1 :]
    return scores.gather(2, ids[:, len(prompt) :, None]).sum(dim=(1, 2)).tolist()


def log_prob(decoder, context, prompt, text):
    return log_probs(decoder, context, prompt, [text])[0]


def greedy_by_hand(decoder, context, prompt):
    text = []
    while len(text) < LONGEST and END not in text:
        text.append(int(decoder(torch.tensor([prompt + text]), context[None])[0, -1].argmax()))
    return text


def every_text(length):
    """All that end there, or are as long as a text may be."""
    for text in product(range(V), repeat=length):
        if END not in text[:-1] and (text[-1] == END or length == LONGEST):
            yield list(text)


@pytest.fixture
def exhaustive(decoder, context):
    """(log probability, text) of all texts there are, for each row of the batch."""
    found = [list(every_text(length)) for length in range(1, LONGEST + 1)]
    return [
        [pair for same in found for pair in zip(log_probs(decoder, row, [START], same), same, strict=True)]
        for row in context
    ]


def test_all_texts_have_probability_one(exhaustive):
    for found in exhaustive:
        assert sum(torch.tensor(value).exp().item() for value, _ in found) == pytest.approx(1)


def test_greedy_equals_one_uncached_pass_a_token(decoder, context, prompt):
    generated = run(decoder, context, prompt)
    expected = [greedy_by_hand(decoder, row, [START]) for row in context]
    assert texts(generated) == expected
    assert len({len(text) for text in expected}) > 1  # some end before others
    values = [log_prob(decoder, row, [START], text) for row, text in zip(context, expected, strict=True)]
    assert generated.log_prob.tolist() == pytest.approx(values, abs=1e-5)


def test_what_follows_the_end_is_padding(decoder, context, prompt):
    generated = run(decoder, context, prompt)
    assert (generated.ids[~generated.mask] == PAD).all()
    for text in texts(generated):
        assert END not in text[:-1]
        assert text[-1] == END or len(text) == LONGEST


@pytest.mark.parametrize("beams", [2, 3, V**LONGEST])
def test_a_search_never_does_worse_than_it_says_nor_better_than_all_texts(decoder, context, prompt, exhaustive, beams):
    generated = run(decoder, context, prompt, beams=beams)
    for row, text, value, found in zip(context, texts(generated), generated.log_prob, exhaustive, strict=True):
        assert value.item() == pytest.approx(log_prob(decoder, row, [START], text), abs=1e-5)
        assert value <= max(found)[0] + 1e-5
    assert len({len(text) for text in texts(generated)}) > 1


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
def test_with_enough_beams_the_best_of_all_texts_is_found(decoder, context, prompt, exhaustive, penalty):
    generated = run(decoder, context, prompt, beams=V**LONGEST, length_penalty=penalty)
    expected = [max((value / len(text) ** penalty, text) for value, text in found)[1] for found in exhaustive]
    assert texts(generated) == expected


class Table(Decoder):
    """Next-token probabilities from a table, by the last token."""

    def __init__(self, rows):
        super().__init__(V, 9, D, 1, 2)
        self.rows = rows

    def forward(self, ids, context, **options):
        super().forward(ids, context, **options)  # fills the cache
        return torch.tensor([[self.rows[int(token)] for token in row] for row in ids]).log()


def read_table(rows, **options):
    return run(Table(rows), torch.zeros(1, 1, D), torch.tensor([[START]]), **options)


def test_the_search_finds_what_greedy_misses():
    """Half of the probability is on a first token after which nothing is likely; beams find the better second."""
    rows = {START: [0.0, 0.0, 0.55, 0.45], 2: [0.25, 0.25, 0.25, 0.25], 3: [0.0, 0.9, 0.05, 0.05]}
    assert read_table(rows, max_tokens=2).ids[0, 0] == 2
    found = read_table(rows, max_tokens=2, beams=2)
    assert found.ids.tolist() == [[3, END]]
    assert found.log_prob.exp().item() == pytest.approx(0.45 * 0.9)


def test_with_a_length_penalty_a_longer_text_overtakes_one_that_has_ended():
    """log 0.52 / 1 = -0.65 leads at first, but log(0.48 * 0.9) / 2 = -0.42 is better."""
    rows = {START: [0.0, 0.52, 0.0, 0.48], 2: [0.25] * 4, 3: [0.0, 0.9, 0.05, 0.05], END: [0.25] * 4}
    assert texts(read_table(rows, beams=2)) == [[END]]
    assert texts(read_table(rows, beams=2, length_penalty=1.0)) == [[3, END]]


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_a_batch_equals_its_texts_one_by_one(decoder, context, prompt, options):
    together = texts(run(decoder, context, prompt, **options))
    alone = [texts(run(decoder, row[None], prompt[:1], **options))[0] for row in context]
    assert together == alone


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_prompts_of_several_lengths_are_padded_in_front(decoder, context, options):
    prompts = [[START], [START, 3], [START, 3, 2], [START, 2, 3], [START, 3]]
    padded = torch.tensor([[PAD] * (3 - len(one)) + one for one in prompts])
    mask = torch.tensor([[False] * (3 - len(one)) + [True] * len(one) for one in prompts])
    together = texts(run(decoder, context, padded, prompt_mask=mask, **options))
    alone = [
        texts(run(decoder, row[None], torch.tensor([one]), **options))[0]
        for row, one in zip(context, prompts, strict=True)
    ]
    assert together == alone
    if not options:
        assert alone == [greedy_by_hand(decoder, row, one) for row, one in zip(context, prompts, strict=True)]


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_padding_of_the_context_is_not_seen(decoder, context, prompt, options):
    mask = torch.tensor([True, False, True]).expand(B, -1)
    disturbed = torch.where(mask[..., None], context, 9.0)
    found = run(decoder, disturbed, prompt, context_mask=mask, **options)
    assert texts(found) == texts(run(decoder, context[:, [0, 2]], prompt, **options))


def test_drawn_texts_follow_the_probabilities(decoder, context, exhaustive):
    count = 4000
    generator = torch.Generator().manual_seed(1)
    rows = context[:1].expand(count, -1, -1)
    drawn = texts(run(decoder, rows, torch.full((count, 1), START), temperature=1.0, generator=generator))
    for value, text in exhaustive[0]:
        p = torch.tensor(value).exp().item()
        assert drawn.count(text) / count == pytest.approx(p, abs=5 * (p * (1 - p) / count) ** 0.5 + 1e-3)


def test_drawn_texts_are_a_function_of_the_generator(decoder, context, prompt):
    def drawn(seed):
        return texts(run(decoder, context, prompt, temperature=1.5, generator=torch.Generator().manual_seed(seed)))

    first = drawn(0)
    torch.rand(3)
    assert drawn(0) == first
    assert any(drawn(seed) != first for seed in range(1, 4))


def test_top_k_top_p_and_temperature():
    log_probs = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(2000, -1)

    def shares(**options):
        chosen = GenerationOptions(**{"temperature": 1.0, **options})
        return draw(log_probs, chosen, torch.Generator().manual_seed(0)).bincount(minlength=4) / 2000

    assert shares().tolist() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.05)
    assert shares(top_k=2).tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.05)
    assert shares(top_k=1).tolist() == [0, 1, 0, 0]
    assert shares(top_p=0.7).tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.05)
    assert shares(top_p=0.76)[2] > 0
    assert shares(top_p=0.01).tolist() == [0, 1, 0, 0]
    squares = [p**2 / 0.345 for p in (0.1, 0.5, 0.15, 0.25)]
    assert shares(temperature=0.5).tolist() == pytest.approx(squares, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"beams": 0}, "beams 0"),
        ({"temperature": -1.0}, "temperature -1.0 must be 0 or more"),
        ({"top_p": 0.0}, "top_p 0.0 above 0 to 1"),
        ({"beams": 2, "temperature": 1.0}, "2 beams are searched, not sampled"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


def test_prompts_that_do_not_fit_are_refused(decoder, context, prompt):
    assert run(decoder, context, prompt, max_tokens=9).ids.shape[1] <= 9
    with pytest.raises(ValueError, match="need 10 positions; this decoder has 9; try max_tokens 9"):
        run(decoder, context, prompt, max_tokens=10)
    with pytest.raises(ValueError, match="a prompt ends with padding"):
        run(decoder, context, prompt.expand(-1, 2), prompt_mask=torch.tensor([True, False]).expand(B, 2))
