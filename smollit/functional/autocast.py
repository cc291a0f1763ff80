"""What autocast means for custom functions, which it does not look into."""

import torch
from torch import Tensor


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a matrix product with this weight: that of autocast where it is on, else the weight's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
