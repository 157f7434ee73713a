"""Where in a slice an encoder finds what it says of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ich_seq import windows
from ich_seq.encoder import SliceEncoder


def activation_maps(encoder: SliceEncoder, hu: Tensor) -> NDArray[np.float32] | None:
    """Return what each place of the last feature map adds to each label's logit: (M, K, h, w).

    `hu` are M slices with their J neighbours, (M, J, S, S). The map is gradient times activation, summed over channels
    (HiResCAM, Draelos and Carin 2020): where a network ends in a mean over places and a linear head, that is the class
    activation map (Zhou et al. 2016), and its sum and the head's bias are the logit. None if the network has no
    feature map with places (transformers of tokens, networks of several maps), or no head.
    """
    if encoder.head is None:
        return None
    with torch.inference_mode():
        seen = encoder.feature_map(windows.apply(hu, encoder.spec.windows_hu))
    if not isinstance(seen, Tensor) or seen.ndim != 4:
        return None
    with torch.inference_mode(mode=False), torch.enable_grad():
        places = seen.clone().requires_grad_()  # what inference mode made takes no gradient, a copy does
        logits = encoder.head(encoder.pooled(places))
        slopes = [torch.autograd.grad(logit.sum(), places, retain_graph=True)[0] for logit in logits.T]
    channels = 1 if seen.shape[1] == encoder.network.num_features else 3
    maps = torch.stack([(slope * places).sum(dim=channels) for slope in slopes], dim=1)
    return maps.detach().float().cpu().numpy()
