# SPDX-License-Identifier: Apache-2.0
"""Tables of the diffusion process, in numpy float64.

Sources: Ho et al. 2020 (DDPM), equations 4 to 7; OpenAI's `gaussian_diffusion.py` as used by Vchitect/Latte
`diffusion/`. Notation of the comments: a = alphas_cumprod (the product of 1 - beta), a' = alphas_cumprod_prev.
"""

import numpy as np

TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "log_betas",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def linear_betas(steps=1000, start=1e-4, end=0.02):
    """Variances of the noise added in each step, evenly spaced from start to end. Returns (steps,) float64.

    The defaults are those of every published Latte. Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(
            f"linear_betas was asked for {steps} steps; expected 1 or more (published models: 1000)"
        )
    return np.linspace(start, end, steps, dtype=np.float64)


class Schedule:
    """All tables that follow from the betas (T,), each (T,) float64 and an attribute by its name in TABLES.

    posterior_variance is that of q(x_{t-1} | x_t, x_0); its first entry is 0, so that the first entry of
    posterior_log_variance_clipped is taken from the second. Raises ValueError for betas that are not one axis
    of numbers between 0 and 1.
    """

    def __init__(self, betas):
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not betas.size or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                f"betas have shape {betas.shape} and must be one axis of numbers between 0 and 1 (both excluded); "
                "linear_betas() gives the published ones"
            )
        self.betas = betas
        self.num_timesteps = len(betas)
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        noise, noise_prev = 1.0 - self.alphas_cumprod, 1.0 - self.alphas_cumprod_prev

        # q(x_t | x_0), and x_0 from x_t and the noise
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(noise)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)

        # q(x_{t-1} | x_t, x_0)
        self.log_betas = np.log(betas)
        self.posterior_variance = betas * noise_prev / noise
        clipped = self.posterior_variance.copy()
        clipped[0] = clipped[1] if len(clipped) > 1 else betas[0]  # the variance of the last step is 0
        self.posterior_log_variance_clipped = np.log(clipped)
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / noise
        self.posterior_mean_coef2 = noise_prev * np.sqrt(1.0 - betas) / noise

    def tables(self):
        """All tables in the order of TABLES: a tuple of (T,) float64 arrays."""
        return tuple(getattr(self, name) for name in TABLES)
