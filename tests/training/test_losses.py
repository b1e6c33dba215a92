from math import exp, log

import pytest
import torch

from mbdefense.engine.batches import pad_left, response_log_probs
from mbdefense.engine.log_probs import IGNORED, SequenceLogProbs, sequence_log_probs
from mbdefense.models.loading import Encoded, load_model
from mbdefense.training.losses import layer_inconsistency, log_ratio, recovery_loss

FORMS = ("mean", "exp_mean", "sum")


def scores(totals, tokens):
    return SequenceLogProbs(torch.tensor(totals, dtype=torch.float64), torch.tensor(tokens))


def probabilities(*rows):
    """Logits whose softmax is the given probabilities, each row shifted, which a softmax must not notice."""
    return torch.tensor([[[log(p) + 7.0 for p in position] for position in row] for row in rows], dtype=torch.float64)


def logsigmoid(x):
    return -log(1 + exp(-x))


def test_sequence_log_probs_by_hand():
    logits = probabilities(
        [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]],
        [[0.2, 0.2, 0.6], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]],
    )
    found = sequence_log_probs(logits, torch.tensor([[1, 2, 0], [IGNORED, IGNORED, 2]]))
    assert found.total.tolist() == pytest.approx([log(0.25) + log(0.7) + log(0.6), log(0.4)])
    assert found.tokens.tolist() == [3, 1]
    assert found.mean.tolist() == pytest.approx([(log(0.25) + log(0.7) + log(0.6)) / 3, log(0.4)])


def test_ignored_positions_have_no_influence():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 5, generator=generator, dtype=torch.float64)
    other = logits.clone()
    other[0, 0] = torch.tensor([100.0, -100.0, 0.0, 3.0, 1.0])
    labels = torch.tensor([[IGNORED, 4, 0]])
    assert sequence_log_probs(logits, labels).total.item() == sequence_log_probs(other, labels).total.item()
    logits.requires_grad_()
    sequence_log_probs(logits, labels).total.sum().backward()
    assert logits.grad[0, 0].abs().max() == 0
    assert logits.grad[0, 1].abs().max() > 0


def test_half_precision_is_summed_in_float32():
    # A vocabulary of 2048 equal logits: bfloat16 cannot hold log(2048) = 7.6246 to four digits.
    found = sequence_log_probs(torch.zeros(1, 1, 2048, dtype=torch.bfloat16), torch.tensor([[3]]))
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(-log(2048), abs=1e-5)


def test_large_logits_stay_finite():
    found = sequence_log_probs(torch.tensor([[[1e4, 0.0]]]), torch.tensor([[1]]))
    assert found.total.item() == pytest.approx(-1e4)


def test_a_sequence_without_a_response_is_refused():
    logits = torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match="sequence 1 of the batch has no response"):
        sequence_log_probs(logits, torch.tensor([[0, 1], [IGNORED, IGNORED]]))
    with pytest.raises(ValueError, match="sequence 0"):
        sequence_log_probs(logits, torch.full((2, 2), IGNORED))


@pytest.mark.parametrize(
    ("form", "beta", "expected"),
    [
        # Per token -6/3 - (-2/2) = -1; summed -6 - (-2) = -4.
        ("mean", 1.0, logsigmoid(-1)),
        ("mean", 0.5, logsigmoid(-0.5)),
        ("exp_mean", 1.0, logsigmoid(exp(-1))),
        ("sum", 1.0, logsigmoid(-4)),
        ("sum", 0.1, logsigmoid(-0.4)),
    ],
)
def test_log_ratio_by_hand(form, beta, expected):
    found = log_ratio(scores([-6.0], [3]), scores([-2.0], [2]), form, beta)
    assert found.tolist() == pytest.approx([expected])
    assert found.item() < 0


@pytest.mark.parametrize("form", FORMS)
def test_log_ratio_rises_with_the_clean_response_and_falls_with_the_defensive_one(form):
    clean = torch.tensor([-6.0], dtype=torch.float64, requires_grad=True)
    defensive = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    three, two = torch.tensor([3]), torch.tensor([2])
    log_ratio(SequenceLogProbs(clean, three), SequenceLogProbs(defensive, two), form, 1.0).sum().backward()
    assert clean.grad.item() > 0
    assert defensive.grad.item() < 0


def pull(form, difference):
    """How strongly R pulls on the clean response, whose log-probability per token lies `difference` off the other's."""
    clean = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    one = torch.tensor([1])
    log_ratio(SequenceLogProbs(clean, one), scores([0.0], [1]), form, 1.0).sum().backward()
    return clean.grad.item()


def test_only_mean_pulls_where_the_backdoor_is_strong():
    """Why "mean" is the default: with a strong backdoor the printed formula has no gradient to break it with."""
    assert pull("mean", -20.0) == pytest.approx(1.0, abs=1e-6)
    assert 0 <= pull("exp_mean", -20.0) < 1e-8
    # Where the two responses are about as likely, both train.
    assert pull("mean", 0.0) == pytest.approx(0.5)
    assert pull("exp_mean", 0.0) == pytest.approx(1 / (1 + exp(1)))


def test_recovery_loss_by_hand():
    """N = 2 samples, T = 2 triggers, lambda 0.5."""
    found = recovery_loss(
        scores([-3.0, -8.0], [3, 4]),  # y given x: -1 and -2 per token
        scores([-6.0, -3.0, -4.0, -12.0], [3, 3, 4, 4]),  # y given x_d: -2, -1 | -1, -3 per token
        scores([-2.0, -6.0, -2.0, -2.0], [2, 2, 2, 2]),  # y_d given x_d: -1, -3 | -1, -1 per token
        triggers=2,
        lambda_=0.5,
        form="mean",
        beta=1.0,
    )
    cross_entropy = 1.0 + 2.0
    ratio = (logsigmoid(-1) + logsigmoid(2)) / 2 + (logsigmoid(0) + logsigmoid(-2)) / 2
    assert found.cross_entropy.item() == pytest.approx(cross_entropy)
    assert found.ratio.item() == pytest.approx(ratio)
    assert found.total.item() == pytest.approx(cross_entropy - 0.5 * ratio)


def test_recovery_loss_groups_triggers_by_sample():
    """Sample-major order: swapping whole samples changes nothing, and each sample weighs the same."""
    plain, clean, defensive = scores([-3.0, -8.0], [3, 4]), [-6.0, -3.0, -4.0, -12.0], [-2.0, -6.0, -2.0, -2.0]
    options = {"triggers": 2, "lambda_": 1.0, "form": "sum", "beta": 0.3}
    one = recovery_loss(plain, scores(clean, [4] * 4), scores(defensive, [2] * 4), **options)
    swapped = recovery_loss(
        scores([-8.0, -3.0], [4, 3]),
        scores(clean[2:] + clean[:2], [4] * 4),
        scores(defensive[2:] + defensive[:2], [2] * 4),
        **options,
    )
    assert one.total.item() == pytest.approx(swapped.total.item())


def test_recovery_loss_refuses_another_number_of_triggers():
    with pytest.raises(ValueError, match="expected 2 x 2"):
        recovery_loss(
            scores([-1.0, -1.0], [1, 1]),
            scores([-1.0] * 3, [1] * 3),
            scores([-1.0] * 3, [1] * 3),
            triggers=2,
            lambda_=1.0,
            form="mean",
            beta=1.0,
        )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_through_the_logits(form):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (5, 3), generator=generator)
    labels[1, :2] = IGNORED
    labels[4, 0] = IGNORED

    def loss(logits):
        both = sequence_log_probs(logits, labels)
        plain, clean, defensive = (
            SequenceLogProbs(total, tokens)
            for total, tokens in zip(both.total.split([1, 2, 2]), both.tokens.split([1, 2, 2]), strict=True)
        )
        return recovery_loss(plain, clean, defensive, triggers=2, lambda_=0.7, form=form, beta=1.0).total

    logits = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits,))


def test_padding_changes_no_log_probability(tiny_model_path):
    model = load_model(tiny_model_path).model.double().eval()
    sequences = [
        Encoded([5, 6, 7, 8], [20, 21, 2], False),
        Encoded([9, 10], [22, 2], False),
        Encoded([11], [23, 24, 25, 26, 2], False),
    ]
    longer = Encoded(list(range(30, 70)), list(range(70, 85)), False)
    with torch.no_grad():
        alone = [response_log_probs(model, pad_left([sequence], 0)) for sequence in sequences]
        batched = response_log_probs(model, pad_left([*sequences, longer], 0))
    for row, one in enumerate(alone):
        assert batched.total[row].item() == pytest.approx(one.total.item(), abs=1e-9)
        assert batched.tokens[row] == one.tokens[0] == len(sequences[row].response)


def test_batch_scores_equal_a_plain_forward_pass(tiny_model_path):
    """Without any of `pad_left`'s arrangements: every token's log-softmax at the position before it."""
    model = load_model(tiny_model_path).model.double().eval()
    prompt, response = [5, 6, 7, 8], [20, 21, 2]
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        found = response_log_probs(model, pad_left([Encoded(prompt, response, False), Encoded([9] * 9, [4], False)], 0))
    expected = sum(log_probs[len(prompt) + k - 1, token].item() for k, token in enumerate(response))
    assert found.total[0].item() == pytest.approx(expected, abs=1e-9)


def layers(*states):
    """Hidden states of one position each from (x, y) pairs: the embeddings, then the layers."""
    return [torch.tensor([[state]], dtype=torch.float32) for state in states]


def test_layer_inconsistency_by_hand():
    # Cosines between the inner layers: 0, then 1 / sqrt(2). Length says nothing, nor do the first and the last.
    states = layers((-9.0, 4.0), (1.0, 0.0), (0.0, 5.0), (2.0, 2.0), (-3.0, -3.0))
    found = layer_inconsistency(states, torch.ones(1, 1))
    assert found.tolist() == pytest.approx([(1 + 1 - 0.5**0.5) / 2])
    assert layer_inconsistency(layers((0, 1), (1, 2), (2, 4), (5, -7)), torch.ones(1, 1)).item() == pytest.approx(
        0, abs=1e-6
    )
    assert layer_inconsistency(layers((0, 1), (1, 2), (-1, -2), (5, -7)), torch.ones(1, 1)).item() == pytest.approx(2)


def test_layer_inconsistency_is_the_mean_over_real_positions():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 3, 4, generator=generator) for _ in range(5)]
    alone = [layer_inconsistency([state[:, i : i + 1] for state in states], torch.ones(1, 1)) for i in range(3)]
    masked = layer_inconsistency(states, torch.tensor([[0, 1, 1]]))
    assert masked.item() == pytest.approx((alone[1] + alone[2]).item() / 2)


def test_layer_inconsistency_of_nothing_is_refused():
    states = [torch.ones(2, 1, 4) for _ in range(5)]
    with pytest.raises(ValueError, match="padding alone"):
        layer_inconsistency(states, torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="among 2 layers"):
        layer_inconsistency(states[:3], torch.ones(2, 1))
