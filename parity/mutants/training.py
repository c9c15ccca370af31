# SPDX-License-Identifier: Apache-2.0
"""Bugs of the training step. Optimiser, average and scale are float32 under every half-precision policy: their own
cases stand for all dtypes, and a tiny net trained for a few steps shows what becomes of a bug in each."""

from parity.mutants import NUMBERS, gates, mutant

FLOATS = gates("G1 G2", "-")
BOTH = gates("G1 G2 G5", "G5")
TRAINED = gates("G5", "G5")
NOTE = "float32 in half precision too, so judged in fp32"
SHORT, WINDOW = "step.TrainingStep-short", "step.TrainingStep-accumulated"
STEP = "step.TrainingStep."

MUTANTS = [
    mutant(
        "first_moment_not_corrected",
        "no bias correction of the first moment: the first steps are a tenth of what they should be",
        ("optim.adamw_factors-first", SHORT),
        BOTH,
        ("optim.adamw_factors", "lr / correction1", "lr"),
    ),
    mutant(
        "second_moment_not_corrected",
        "no bias correction of the second moment: the first steps are thirty times too long",
        ("optim.adamw_factors-first", SHORT),
        BOTH,
        ("optim.adamw_factors", "ops.sqrt(correction2)", "one"),
    ),
    mutant(
        "decay_coupled",
        "weight decay added to the gradient (L2) instead of taken from the weights",
        ("optim.adamw-decayed", SHORT),
        BOTH,
        (
            "optim.adamw",
            "parameter = parameter * shrink if decays else parameter",
            "gradient = gradient + parameter * 0.5 if decays else gradient",
        ),
    ),
    mutant(
        "decay_without_rate",
        "weight decay not multiplied by the learning rate",
        ("optim.adamw_factors-late", SHORT),
        BOTH,
        ("optim.adamw_factors", "one - lr * constant(weight_decay, lr)", "one - constant(weight_decay, lr)"),
    ),
    mutant(
        "biases_decay",
        "biases and norms decay with the rest",
        SHORT,
        TRAINED,
        ("optim.decayed_names", 'if strategy == "all":', "if strategy:"),
    ),
    mutant(
        "eps_inside_the_root",
        "eps added below the root of the second moment",
        ("optim.adamw-decayed", SHORT),
        BOTH,
        (
            "optim.adamw",
            "divide(ops.sqrt(v), root2) + constant(eps, v)",
            "divide(ops.sqrt(v + constant(eps, v)), root2)",
        ),
    ),
    mutant(
        "moments_forget_on_overflow",
        "a dropped step still shrinks the first moment",
        ("optim.adamw_factors-skipped", SHORT),
        BOTH,
        (
            "optim.adamw_factors",
            "ops.where(updated, one * constant(betas[0], lr), one)",
            "one * constant(betas[0], lr)",
        ),
    ),
    mutant(
        "masters_from_rounded_weights",
        "the float32 masters start every step from the half-precision weights",
        SHORT,
        gates("-", "G5"),
        ("optim.AdamW.update", "self.owned[i], self.m[i]", "self.parameters[i], self.m[i]"),
        note="in fp32 the weights are the masters",
    ),
    mutant(
        "ema_before_update",
        "the average takes in the weights of the step before",
        SHORT,
        TRAINED,
        (
            STEP + "construct",
            'self.optimizer.update(total, batch["lr"], updated)',
            'self.ema.update(batch["ema_decay"], updated); self.optimizer.update(total, batch["lr"], updated)',
        ),
        (STEP + "construct", "if self.ema is not None:", "if False:"),
    ),
    mutant(
        "ema_shares_swapped",
        "the average keeps 1 - decay of itself",
        ("ema.ema-updated", SHORT),
        BOTH,
        ("ema.ema", "updated, 1 - decay", "updated, decay"),
    ),
    mutant(
        "ema_every_micro_step",
        "the average taken after every micro step of a window",
        WINDOW,
        TRAINED,
        (STEP + "construct", 'batch["ema_decay"], updated', 'batch["ema_decay"], finite'),
    ),
    mutant(
        "accumulation_summed",
        "gradients of a window added, not averaged",
        WINDOW,
        TRAINED,
        (STEP + "accumulate", "divide(gradients[i], self.accumulation_steps)", "gradients[i]"),
    ),
    mutant(
        "window_one_short",
        "a window of accumulation ends one micro step too early",
        WINDOW,
        TRAINED,
        (STEP + "accumulate", "count == self.accumulation_steps", "count == self.accumulation_steps - 1"),
    ),
    mutant(
        "window_not_cleared",
        "gradients of a window leak into the next one",
        WINDOW,
        TRAINED,
        (
            STEP + "accumulate",
            "ops.where(complete, ops.zeros_like(total[i]), total[i])",
            "total[i]",
        ),
    ),
    mutant(
        "clip_without_eps",
        "nothing added to the norm that gradients are divided by",
        "optim.clip_coefficient-probe_tiny",
        gates("G1 G3", "-"),
        ("optim.clip_coefficient", "(norm + constant(CLIP_EPS, norm))", "norm"),
        note=NOTE,
    ),
    mutant(
        "clipping_from_the_first_step",
        "clipping on before the step in which it begins",
        SHORT,
        TRAINED,
        (STEP + "construct", 'batch["clip"], clip_coefficient', "finite == finite, clip_coefficient"),
    ),
    mutant(
        "norm_before_unscaling",
        "the norm, and so the clipping, taken of gradients that still hold the loss scale",
        SHORT,
        TRAINED,
        (
            STEP + "construct",
            "total = [divide(gradient, scale) for gradient in total]\n    norm = global_norm(total)",
            "norm = global_norm(total)\n    total = [divide(gradient, scale) for gradient in total]",
        ),
    ),
    mutant(
        "gradients_not_unscaled",
        "the loss scale left in the gradients",
        SHORT,
        TRAINED,
        (STEP + "construct", "divide(gradient, scale) for", "gradient for"),
    ),
    mutant(
        "overflow_updates",
        "an update is made although its gradients are not finite",
        SHORT,
        TRAINED,
        (
            STEP + "construct",
            "ops.logical_and(complete, finite) if self.drop_overflow else complete",
            "complete",
        ),
    ),
    mutant(
        "overflow_keeps_the_scale",
        "an overflow does not lower the loss scale",
        ("scaler.next_scale-overflow", SHORT),
        BOTH,
        ("scaler.next_scale", "scale / factor", "scale"),
    ),
    mutant(
        "growth_not_restarted",
        "after the scale grew, it grows again in every step",
        "scaler.next_scale-grows",
        FLOATS,
        ("scaler.next_scale", "ops.where(grows, ops.zeros_like(good), good)", "good"),
        note=NOTE,
    ),
    mutant(
        "bound_trains_the_noise",
        "the gradient of the variational bound reaches the predicted noise",
        (SHORT, WINDOW),  # a few percent of a gradient: in bf16 a sum of three shows it
        TRAINED,
        ("gaussian.GaussianDiffusion.training_losses", "ops.stop_gradient(eps)", "eps"),
    ),
    mutant(
        "labels_not_dropped",
        "the labels of dropped samples are kept, so guidance has nothing to learn from",
        "losses.predict-joint",
        NUMBERS,
        ("losses.predict", 'drop_ids=batch.get("drop")', "drop_ids=None"),
    ),
    mutant(
        "drops_inverted",
        "text kept where it should be dropped, and dropped where it should be kept",
        ("losses.drop_text-text", "losses.predict-caption"),
        NUMBERS,
        ("losses.drop_text", "ops.where(drop,", "ops.where(ops.logical_not(drop),"),
    ),
    mutant(
        "mask_of_dropped_text_kept",
        "a dropped caption keeps the mask of the caption it replaces",
        "losses.predict-caption",
        NUMBERS,
        (
            "losses.predict",
            'mask if mask is None else drop_text(mask, batch["drop"], batch["null_text_mask"])',
            "mask",
        ),
    ),
    mutant(
        "posterior_by_variance",
        "the noise of a posterior sample times the variance, not its root",
        ("losses.posterior_sample", SHORT),
        BOTH,
        ("losses.posterior_sample", "exp(logvar * 0.5)", "exp(logvar)"),
    ),
    mutant(
        "posterior_mean_alone",
        "the mean of the posterior instead of a sample",
        ("losses.posterior_sample", SHORT),
        BOTH,
        ("losses.posterior_sample", "mean + exp(logvar * 0.5) * noise", "mean"),
    ),
    mutant(
        "latents_not_scaled",
        "the scaling factor of the VAE forgotten",
        ("losses.posterior_sample", SHORT),
        BOTH,
        ("losses.posterior_sample", "* constant(scaling_factor, mean)", ""),
    ),
    mutant(
        "rate_one_step_late",
        "the warm-up counts from zero: the first step has no rate",
        "schedules.learning_rate-warmup",
        gates("G1", "-"),
        ("schedules.learning_rate", "start * (step + 1)", "start * step"),
        note="Python numbers, judged in float64 alone",
    ),
    mutant(
        "decay_counts_the_warmup",
        "the decay of the rate begins at step 0, not after the warm-up",
        "schedules.learning_rate-cosine",
        gates("G1", "-"),
        ("schedules.learning_rate", "(step - warmup_steps) / decay_steps", "step / decay_steps"),
        note="Python numbers, judged in float64 alone",
    ),
    mutant(
        "ema_warmup_ignored",
        "the average starts at its full decay",
        "schedules.ema_decay-warmup",
        gates("G1", "-"),
        ("schedules.ema_decay", "if warmup else decay", "if False else decay"),
        note="Python numbers, judged in float64 alone",
    ),
]
