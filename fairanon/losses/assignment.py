"""Which image should show which class, so that a batch has the wanted shares and few images change (aDFT, section 4.1)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F


def assigned_classes(probabilities: Tensor, shares: Tensor, generator: torch.Generator, draws: int = 100) -> Tensor:
    """How often each image is asked for each class, where classes are drawn and dealt to the images at the least cost.

    N classes are drawn from the wanted shares and dealt to the N images by optimal assignment; the cost is the distance of an
    image's probabilities to the class. The mean over many draws says how sure an image's class is.

    Args:
        probabilities: float (N, K), what a judge says of the images of one prompt.
        shares: float (K,), the wanted shares.
        generator: Of the draws, on the CPU.
        draws: How many.

    Returns:
        float32 (N, K), rows sum to 1.

    Examples:
        >>> three_women = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.9, 0.1]])
        >>> asked = assigned_classes(three_women, torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0))
        >>> asked[:, 1].argmax().item()
        2
    """
    count, classes = probabilities.shape
    ideal = torch.eye(classes, dtype=torch.float64)
    cost = torch.cdist(probabilities.detach().cpu().double(), ideal)
    asked = torch.zeros(count, classes)
    for _ in range(draws):
        drawn = torch.multinomial(shares.cpu().double(), count, replacement=True, generator=generator)
        image, slot = linear_sum_assignment(cost[:, drawn].numpy())
        asked[torch.from_numpy(image)] += F.one_hot(drawn[torch.from_numpy(slot)], classes)
    return asked / draws
