"""A fitted model as one plain PyTorch module, for use without scikit-learn and for export."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from skbegan.core.inference import fold
from skbegan.core.networks import generator_of
from skbegan.data.source import Scaling, by_itself

NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16)  # float32 holds these


class StandaloneModel(nn.Module):
    """From brightfield images, in their own units, to profiles and to images in the units of the target.

    Standardisation, population statistics, what makes the profile and what erases the batch from images are all inside.
    The module is in inference mode, and its weights ask for no gradients.

    Parameters
    ----------
    weights : mapping of str to ndarray
        Those of a :class:`~skbegan.model.FittedModel`. They are copied.
    bf_scaling, target_scaling : Scaling
        Standardisation of brightfield and target.
    per_image : bool, default=False
        Whether each channel of each brightfield is then brought to mean 0 and standard deviation 1 by itself.
    """

    mean: Tensor
    rest: Tensor
    gain: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        bf_scaling: Scaling,
        target_scaling: Scaling,
        per_image: bool = False,
    ) -> None:
        super().__init__()
        self.per_image = per_image
        generator = fold(generator_of(dict(weights), torch.device("cpu"), torch.float32), torch.float32)
        # Exporters know one layout only.
        self.generator = generator.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        high = bf_scaling.mean.astype(np.float32)
        buffers = {
            # The mean in two parts, which together hold it as well as a float64: not every device has that type.
            "mean": high,
            "rest": bf_scaling.mean - high,
            "gain": 1.0 / bf_scaling.scale,
            "target_mean": target_scaling.mean,
            "target_scale": target_scaling.scale,
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.eval()

    def forward(self, bf: Tensor) -> tuple[Tensor, Tensor]:
        """Return profiles (n, n_features) and images (n, C_target, side, side) of brightfields (n, C, side, side).

        Float64, int32 and int64 inputs lose their mean before they are rounded to the type of the weights, so that a
        large offset costs no digits; narrower types are converted first.
        """
        expected = (len(self.mean), self.generator.side, self.generator.side)
        if bf.ndim != 4 or tuple(bf.shape[1:]) != expected:
            raise ValueError(
                f"brightfields must have shape (n, {', '.join(map(str, expected))}), got {tuple(bf.shape)}"
            )
        if bf.dtype in NARROW and self.gain.dtype is not torch.float64:
            x = bf.to(self.gain.dtype) - self.mean
        else:
            x = (bf.to(torch.float64) - self.mean.to(torch.float64) - self.rest.to(torch.float64)).to(self.gain.dtype)
        x = x * self.gain
        # As `Generator.profile_of` and `Generator.image_of`, in one pass.
        image, content = self.generator(by_itself(x) if self.per_image else x)
        image = self.generator.erasure(image)
        if self.generator.descriptors is not None:
            content = torch.cat([content, self.generator.descriptors(image)], dim=1)
        return self.generator.profile(content), image * self.target_scale + self.target_mean
