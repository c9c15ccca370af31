# SPDX-License-Identifier: Apache-2.0
"""Bugs of the diffusion process and its samplers. Its tensors are float32 under every half-precision policy, so the
cases of fp16 and bf16 see whatever those of fp32 see, but for errors below a rounding of the half type."""

from parity.mutants import NUMBERS, gates, mutant

G1 = gates("G1", "-")  # numpy tables of their own: judged in float64 alone
P = "gaussian.GaussianDiffusion."
S = "samplers."
MEAN = "gaussian.GaussianDiffusion-p_mean_variance"
LOSS = "gaussian.GaussianDiffusion-training_losses-kl"

MUTANTS = [
    mutant(
        "variance_swapped",
        "the learned fraction interpolates from log beta to the posterior instead of back",
        (MEAN, LOSS),
        NUMBERS,
        (P + "p_mean_variance", "frac * high + (1 - frac) * low", "frac * low + (1 - frac) * high"),
    ),
    mutant(
        "variance_fraction_unscaled",
        "the model's variance channel used as the fraction itself, not (v + 1) / 2",
        (MEAN, LOSS),
        NUMBERS,
        (P + "p_mean_variance", "frac = (v + 1) * 0.5", "frac = v"),
    ),
    mutant(
        "log_variance_not_clipped",
        "the first posterior variance, which is zero, floored at 1e-20 instead of replaced by the second",
        ("schedule.Schedule", MEAN),
        NUMBERS,
        (
            "schedule.Schedule.__init__",
            "clipped[1] if len(clipped) > 1 else betas[0]",
            "1e-20",
        ),
    ),
    mutant(
        "posterior_coefficients_swapped",
        "weights of the clean and of the noisy latents in the posterior mean exchanged",
        ("gaussian.GaussianDiffusion-q_posterior", MEAN),
        NUMBERS,
        (
            P + "q_posterior",
            "_at(self.posterior_mean_coef1, t, x) * x0 + _at(self.posterior_mean_coef2, t, x) * x",
            "_at(self.posterior_mean_coef2, t, x) * x0 + _at(self.posterior_mean_coef1, t, x) * x",
        ),
    ),
    mutant(
        "previous_product_not_shifted",
        "the product of the step itself where that of the step before belongs",
        ("schedule.Schedule", "gaussian.GaussianDiffusion-q_posterior"),
        NUMBERS,
        (
            "schedule.Schedule.__init__",
            "np.append(1.0, self.alphas_cumprod[:-1])",
            "self.alphas_cumprod * (1 - 1e-3)",
        ),
    ),
    mutant(
        "noise_by_variance",
        "the ancestral step scales its noise by the variance, not by its root",
        "samplers.DDPMSampler-middle",
        NUMBERS,
        (S + "DDPMSampler.update", "exp(log_variance * 0.5)", "exp(log_variance)"),
    ),
    mutant(
        "noise_in_the_last_step",
        "fresh noise in the step that ends at clean latents",
        "samplers.DDPMSampler-last",
        NUMBERS,
        (S + "DDPMSampler.update", "if i == len(self.indices) - 1:", "if i == len(self.indices):"),
    ),
    mutant(
        "steps_counted_upwards",
        "the tables of the ancestral step read from the clean end",
        "samplers.DDPMSampler-first",
        NUMBERS,
        (S + "DDPMSampler.__init__", "for k in range(len(ids))][::-1]", "for k in range(len(ids))]"),
    ),
    mutant(
        "ddim_sigma_wrong",
        "DDIM's sigma with the noise of now over that of before",
        "samplers.DDIMSampler-eta_1",
        NUMBERS,
        (
            S + "DDIMSampler.__init__",
            "(1.0 - before) / (1.0 - now)",
            "(1.0 - now) / np.maximum(1.0 - before, 1e-4)",
        ),
    ),
    mutant(
        "ddim_direction_without_sigma",
        "DDIM's direction keeps all noise although fresh noise is added",
        "samplers.DDIMSampler-eta_1",
        NUMBERS,
        (S + "DDIMSampler.__init__", "1.0 - before - sigma**2", "1.0 - before"),
    ),
    mutant(
        "ddim_eps_not_recomputed",
        "DDIM goes on with the model's noise after clipping the clean latents",
        "samplers.DDIMSampler-clipped",
        NUMBERS,
        (
            S + "DDIMSampler.update",
            "eps = x * constant(self.recip[i], x) - x0",
            "eps = eps * constant(self.recipm1[i], x)",
        ),
    ),
    mutant(
        "sampler_timestep_from_one",
        "steps_offset ignored: every timestep one too small",
        ("respace.spaced_grid-leading", "samplers.DDIMSampler-leading"),
        NUMBERS,
        (
            "respace.spaced_grid",
            "(num_timesteps // steps) + steps_offset",
            "(num_timesteps // steps)",
        ),
        note="1.6e-3 of the result: less than twice what fp16 may differ, and below a unit of bf16",
    ),
    mutant(
        "respacing_truncates",
        "fractional timesteps cut instead of rounded half to even",
        ("respace.space_timesteps-fractional", "respace.space_timesteps-ties"),
        G1,
        ("respace.space_timesteps", "np.round(np.cumsum(", "np.floor(np.cumsum("),
        note="whole numbers and tables of numpy, judged in float64 alone",
    ),
    mutant(
        "respacing_keeps_betas",
        "the betas of the kept timesteps instead of those of the shorter process",
        "respace.respaced_betas",
        G1,
        (
            "respace.respaced_betas",
            "return 1.0 - kept / np.append(1.0, kept[:-1]), timestep_map",
            "return betas[timestep_map], timestep_map",
        ),
        note="whole numbers and tables of numpy, judged in float64 alone",
    ),
    mutant(
        "sigma_split_on_the_frame_axis",
        "noise and variance taken from the halves of the frames, as for another layout",
        ("gaussian.split_sigma-frames_first", MEAN),
        NUMBERS,
        (
            "gaussian.split_sigma",
            "model_output.chunk(2, axis=channel_axis)",
            "[h.reshape(x.shape) for h in model_output.reshape(x.shape[0], -1).chunk(2, axis=1)]",
        ),
    ),
    mutant(
        "vb_not_detached",
        "the bound's gradient reaches the predicted noise",
        LOSS,
        gates("-", "-"),
        (P + "training_losses", "ops.stop_gradient(eps)", "eps"),
        note="a gradient of no net; tested in tests/ms_latte/test_diffusion.py",
    ),
    mutant(
        "vb_in_nats",
        "the bound in nats instead of bits",
        LOSS,
        NUMBERS,
        (P + "training_losses", "1.0 / math.log(2.0)", "1.0"),
    ),
    mutant(
        "first_term_by_kl",
        "the first timestep judged by the divergence too",
        "gaussian.GaussianDiffusion-training_losses-first",
        NUMBERS,
        (P + "training_losses", "t == 0", "t < 0"),
    ),
    mutant(
        "bins_twice_as_wide",
        "half a bin taken as 1/128, the width of a whole one",
        ("gaussian.discretized_gaussian_log_likelihood", "gaussian.GaussianDiffusion-training_losses-first"),
        NUMBERS,
        ("gaussian.discretized_gaussian_log_likelihood", "1.0 / 255.0", "1.0 / 128.0"),
    ),
    mutant(
        "guidance_on_all_channels",
        "official Latte's guidance applied to the variance too",
        "samplers.guide-noise_alone",
        NUMBERS,
        (S + "guide", "guided_channels is None or guided_channels >= channels", "channels > 0"),
    ),
    mutant(
        "guidance_halves_swapped",
        "negative and positive halves exchanged",
        ("samplers.guide-noise_alone", "samplers.guide-all_channels"),
        NUMBERS,
        (S + "guide", 'halves if order == "cond_first"', 'halves if order != "cond_first"'),
    ),
    mutant(
        "dpm_second_order_at_the_end",
        "DPM-Solver++ without lower_order_final",
        "samplers.DPMSolverSampler-last",
        NUMBERS,
        (
            S + "DPMSolverSampler.__init__",
            "self.ratio = ratio.tolist()",
            "ratio[-1] = ratio[-2]; self.ratio = ratio.tolist()",
        ),
    ),
    mutant(
        "dpm_ratio_inverted",
        "DPM-Solver++ with the two step lengths exchanged",
        "samplers.DPMSolverSampler-second_order",
        NUMBERS,
        (S + "DPMSolverSampler.__init__", "h[1:-1] / (2.0 * h[:-2])", "h[:-2] / (2.0 * h[1:-1])"),
    ),
    mutant(
        "euler_input_not_scaled",
        "Euler's latents given to the model at their own scale",
        "samplers.EulerSampler-input",
        NUMBERS,
        (S + "EulerSampler.scale_input", "x * constant(self.input_scale[i], x)", "x"),
    ),
    mutant(
        "euler_sigma_of_the_next_step",
        "Euler's step length taken one step later",
        "samplers.EulerSampler-first",
        NUMBERS,
        (S + "EulerSampler.update", "self.difference[i]", "self.difference[i + 1]"),
    ),
]
