# SPDX-License-Identifier: Apache-2.0
"""The parts of one training run, and what is done with them: steps, checkpoints, pictures, the table."""

import sys
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError, dump
from ms_latte.train_config import FREE, HOST
from ms_latte.training import parallel, run_state
from ms_latte.training.log import TrainingLog
from ms_latte.training.stopping import Signals, Stopped

SAMPLES = "samples"  # folder of the pictures, inside that of the run
BATCH_KEYS = {  # what a model of each kind takes from a batch, beside latents and noise
    "none": (),
    "class": ("label", "drop"),
    "text": ("text", "drop"),
    "caption": ("text", "text_mask", "drop"),
}


class Session:
    """The parts of a run and what is done with them."""

    def __init__(self, config, cluster, path, found, say):
        from ms_latte import checkpoint
        from ms_latte.training import build, initial
        from ms_latte.training.loop import Plan, Position, position_of

        self.config, self.cluster, self.path, self.say = config, cluster, Path(path), say
        self.vae = build.make_vae(config)
        self.dataset = build.make_dataset(config, self.vae)
        pixels = config.train_data_type == "video_file"  # a cache tells its VAE itself
        self.vae_hash = checkpoint.weights_hash(self.vae) if pixels else None
        if self.dataset.report:
            say(self.dataset.report.summary())
        self.size = build.latent_size_of(config, self.dataset, self.vae)
        self.model = (
            initial.make_model(config, self.dataset, self.size, say)
            if found is None
            else initial.remake_model(config, found.facts["model"])
        )
        self.kind = type(self.model).__name__
        channels = self.vae.latent_channels if self.vae is not None else self.dataset.latent_shape[1]
        if channels != self.model.in_channels:
            raise ConfigError(
                f"latents have {channels} channels, the model takes {self.model.in_channels}; remedy: --set "
                f"in_channels={channels}, or another VAE"
            )
        self.scaling = (
            config.sd_scale_factor or getattr(self.vae, "scaling_factor", None) or self._cached_scale()
        )
        self.module = build.make_step(config, self.model, self.scaling, parallel.gradient_mean(cluster))
        self.loader = self._loader()
        self._check_columns()
        self.plan = Plan(config, self.loader.steps_per_epoch)
        self.position, self.found = Position(), found
        if found is not None:
            self._check(found)
            run_state.restore(found, self.model, self.module.state())
            self.position = position_of(found.facts)
            say(f"resumed from {found.path}: {self.position.total} of {self.plan.steps} steps are done")
        cluster.check_equal("the configuration", dump(config.model_copy(update={"output_path": None})))
        cluster.check_equal("the set of clips", repr(self.dataset.identity()))
        cluster.check_equal("the checkpoint to resume", repr(self.position))

    def run(self, stack, out):
        """All steps; the table of the run at its end."""
        from ms_latte.training.loop import Loop

        config, position = self.config, self.position
        if position.total >= self.plan.steps:
            self.say(f"all {self.plan.steps} steps are done already")
            return 0
        signals = stack.enter_context(Signals(self.say))
        feeding = self._feeding(signals)
        preview = self._preview()
        log = stack.enter_context(
            TrainingLog(
                self.path,
                start=position.total,
                total=self.plan.steps,
                interval=config.log_interval,
                quiet=config.log_level in ("warning", "error"),
                tensorboard=config.tensorboard,
                writes=self.cluster.writes,
                out=out,
            )
        )

        def save(position, name):
            loop.saved = self._save(position, name)

        def draw(position):
            drawn = preview.draw(self.path / SAMPLES / f"step-{position.total:07d}.png") if preview else None
            if drawn:
                self.say(f"samples in {drawn}")

        def stop():
            self._report_clips()
            return signals.received is not None

        frames = config.num_frames + config.images
        images = self.cluster.size * config.train_batch_size * frames
        loop = Loop(self.plan, self.loader, feeding, self.cluster, log, save, draw, stop, images)
        loop.saved = self.found.path if self.found is not None else None
        position, stopped = loop.run(position)
        if stopped:
            raise Stopped(
                f"{position.total} of {self.plan.steps} steps are done, saved in {loop.saved}; to continue: the same "
                f"command with --output_path {self.path} --resume True",
                signals.received or 15,
            )
        self.say(f"{self.plan.steps} steps, checkpoints in {self.path / run_state.FOLDER}")
        self.say(log.table(self._row(frames)))
        self.say(log.summary())
        return 0

    def _loader(self):
        from ms_latte.data.draws import Draws
        from ms_latte.data.loader import Loader

        config, cluster = self.config, self.cluster
        shape = (config.num_frames + config.images, self.model.in_channels, *self.size)
        return Loader(
            self.dataset,
            config.train_batch_size,
            Draws(shape, self.module.diffusion.num_timesteps, config.class_dropout_prob),
            config.seed,
            rank=cluster.rank,
            world=cluster.size,
            workers=config.num_parallel_workers,
            shuffle=config.shuffle,
        )

    def _feeding(self, signals):
        from ms_latte.training.feeding import Feeding, FrameEncoder, SunkFeeding
        from ms_latte.training.losses import condition_kind

        config, kind = self.config, condition_kind(self.model)
        names = ["mean", "logvar", "posterior", "t", "noise", *BATCH_KEYS[kind], "lr", "ema_decay", "clip"]
        if kind == "class" and config.images:
            names.append("image_labels")
        if not config.class_dropout_prob and "drop" in names:
            names.remove("drop")
        pixels = config.train_data_type == "video_file"
        encoder = FrameEncoder(self.vae, config.vae_chunk) if pixels else None
        fixed = self._null_text(kind) if "drop" in names and kind != "class" else {}
        sinks = config.dataset_sink_mode and config.device_target != "CPU"  # it has no queues
        return (SunkFeeding if sinks else Feeding)(self.module, names, encoder, fixed, signals.renew)

    def _check_columns(self):
        """Raise ConfigError where the data lack what the model is conditioned on."""
        from ms_latte.training.losses import condition_kind

        config, held = self.config, self.loader.layout
        if missing := [key for key in BATCH_KEYS[condition_kind(self.model)] if key not in held]:
            raise ConfigError(
                f"--condition {config.condition}, but {config.data_folder} gives no {' and no '.join(missing)}; "
                "expected a cache that ms_latte.cache made with --condition text, and its --train_data_type"
            )

    def _null_text(self, kind):
        """Features of the empty text, which a dropped caption becomes."""
        from ms_latte.encoders.text_cache import load_text_cache

        if not self.config.embeddings:
            raise ConfigError(
                f"--embeddings is missing: with class_dropout_prob {self.config.class_dropout_prob:g}, captions become "
                "the empty text; expected a file of its features (made by ms_latte.sample with --save_embeddings), or "
                "--class_dropout_prob 0"
            )
        text, mask = load_text_cache(self.config.embeddings).find([""])
        shape, _ = self.loader.layout["text"]
        if text.shape[1:] != tuple(shape[1:]):
            raise ConfigError(
                f"--embeddings {self.config.embeddings}: texts of {text.shape[1:]}, those of the cache are {shape[1:]} "
                "(tokens, width); expected features of one encoder and length"
            )
        found = {"null_text": text[0].astype(np.float32), "null_text_mask": mask[0].astype(np.int32)}
        return found if kind == "caption" else {"null_text": found["null_text"]}

    def _preview(self):
        from ms_latte.training.preview import Preview

        config = self.config
        if not (config.sample_every and self.cluster.writes):
            return None
        if self.vae is None:
            self.say("no sample pictures: --sample_every needs --vae_checkpoint beside a cache of latents")
            return None
        texts = None
        if config.condition == "text":
            rows = [self.loader.batch(0, 0)[key] for key in ("text", "text_mask")]
            texts = [row[np.arange(config.sample_count) % len(row)] for row in rows]
        return Preview(
            self.model,
            self.module.ema.shadow if self.module.ema is not None else None,
            self.vae,
            config.sample_steps,
            config.sample_count,
            config.num_frames,
            self.size,
            config.sd_scale_factor,
            texts,
        )

    def _facts(self, position):
        from ms_latte.training.initial import model_facts
        from ms_latte.training.loop import position_facts

        return {
            "position": position_facts(position),
            "config": self.config.model_dump(mode="json"),
            "cards": self.cluster.size,
            "model": model_facts(self.model),
            "data": self.dataset.identity(),
            "schedule": self.plan.facts(),
            "vae": self.vae_hash,
        }

    def _save(self, position, name):
        path = self.path / run_state.FOLDER / f"{self.kind}-{name}"
        if self.cluster.writes:
            run_state.save(
                path.parent,
                path.name,
                self.model,
                self.module.state(),
                self._facts(position),
                self.config.ckpt_max_keep,
            )
        return path

    def _check(self, found):
        refused, noted = run_state.differences(found.facts, self._facts(self.position), FREE, HOST)
        if refused:
            raise ConfigError(
                f"--resume {found.path} is of another run: {'; '.join(refused)}; repeat the old configuration, or "
                "start anew from its weights with --pretrained_model_path"
            )
        for line in noted:
            self.say(f"differs from the interrupted run: {line} (equal up to rounding)")

    def _report_clips(self):
        for line in self.dataset.report.take():
            print(f"rank {self.cluster.rank}: {line}" if self.cluster.size > 1 else line, file=sys.stderr)

    def _cached_scale(self):
        from ms_latte.training.step import SCALING_FACTOR

        return getattr(self.dataset, "scaling_factor", None) or SCALING_FACTOR

    def _row(self, frames):
        config = self.config
        height, width = config.image_size
        return {
            "model name": config.model_name if self.kind == "Latte" else self.kind,
            "cards": self.cluster.size,
            "image size": f"{height}x{width}",
            "graph compile": config.mode == 0,
            "batch size": config.train_batch_size,
            "num frames": frames,
            "recompute": config.use_recompute,
            "dataset sink mode": config.dataset_sink_mode,
            "embedding cache": config.train_data_type != "video_file",
            "jit level": config.jit_level if config.mode == 0 else "-",
        }
