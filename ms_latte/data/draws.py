# SPDX-License-Identifier: Apache-2.0
"""Everything random of a training sample besides its pixels, drawn in NumPy at the edge."""

from dataclasses import dataclass

import numpy as np

from ms_latte.data.order import generator


@dataclass(frozen=True)
class Draws:
    """What a training step is given for every sample.

    latent_shape: (F+I, C, h, w), frames and joint images of one sample; num_timesteps: of the diffusion;
    class_dropout_prob: how often the condition (class or caption) is dropped. Raises ValueError for impossible values.
    """

    latent_shape: tuple
    num_timesteps: int = 1000
    class_dropout_prob: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "latent_shape", tuple(int(n) for n in self.latent_shape))
        if len(self.latent_shape) != 4 or min(self.latent_shape) < 1:
            raise ValueError(
                f"latent_shape {self.latent_shape}: expected four positive sizes (frames + images, channels, height, "
                "width)"
            )
        if self.num_timesteps < 1:
            raise ValueError(f"num_timesteps {self.num_timesteps}: expected at least 1")
        if not 0 <= self.class_dropout_prob <= 1:
            raise ValueError(f"class_dropout_prob {self.class_dropout_prob}: expected 0 to 1")

    def sample(self, seed, epoch, position):
        """The draws of the sample at a position of an epoch's order.

        Returns "t" int32 (), "noise" and "posterior" float32 (F+I, C, h, w) standard normal, "drop" bool ().
        """
        timestep = generator(seed, "timestep", epoch, position).integers(self.num_timesteps)
        noise = generator(seed, "noise", epoch, position)
        posterior = generator(seed, "posterior", epoch, position)
        # A uniform number in [0, 1) is never below 0 and always below 1: both ends of the probability are exact.
        drop = generator(seed, "drop", epoch, position).random() < self.class_dropout_prob
        return {
            "t": np.int32(timestep),
            "noise": noise.standard_normal(self.latent_shape, np.float32),
            "posterior": posterior.standard_normal(self.latent_shape, np.float32),
            "drop": np.bool_(drop),
        }
