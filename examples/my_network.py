"""A network and a task of one's own: `examples/odd_digits.toml` and `examples/synflow_on_digits.toml` use them."""

from torch import nn

from natal import Data, network, task
from natal.lab.tasks import load


@network("tiny-cnn")
def tiny_cnn(shape: tuple[int, ...], outputs: int, *, width: int = 16) -> nn.Module:
    """Two convolutions, a mean over the image, a linear layer."""
    first, second = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
    pooled = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*pooled, nn.Flatten(), nn.Linear(2 * width, outputs))


@task("odd-digits", loss="cross-entropy", metric="accuracy", learning_rate=0.01, chance=0.5)
def odd_digits() -> Data:
    """Tell odd digits from even ones."""
    data = load("digits", 0, 0.1).data
    return Data(data.inputs, data.targets % 2, data.test_inputs, data.test_targets % 2, outputs=2)
