"""The formula of classifier-free guidance, which networks and samplers both need and neither has from the other."""

from typing import TypeVar

Value = TypeVar("Value")  # a tensor, or a number


def guide(conditional: Value, weak: Value, scale: float) -> Value:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598, in DiT's parameterisation: a scale of 1 is no guidance).

    Args:
        weak: what is guided away from: the prediction for the null label, or that of a worse network.
    """
    return weak + scale * (conditional - weak)
