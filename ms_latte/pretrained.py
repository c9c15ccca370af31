# SPDX-License-Identifier: Apache-2.0
"""`save_pretrained` and `from_pretrained` of the models, in diffusers' folder format."""


class Pretrained:
    """Mixin of a model that `ms_latte.checkpoint` can load and save."""

    def save_pretrained(self, save_directory, max_shard_size=None):
        """Write a folder with config.json and diffusion_pytorch_model.safetensors; returns the content hash.

        max_shard_size: "5GB", "500MB" or bytes; larger models become shards with an index. The folder appears
        when it is complete and replaces an older one; diffusers' `LatteTransformer3DModel.from_pretrained`
        reads that of a `LatteT2V` whose temporal positions are its own, and diffusers' classes of the same name
        read those of the VAEs. The weights of a `T5EncoderModel` are in model.safetensors, as in transformers.
        Raises CheckpointError for a model that the format cannot describe, ConversionError for a folder that holds
        other things.
        """
        from ms_latte import checkpoint

        return checkpoint.save(self, save_directory, max_shard_size, folder=True)

    @classmethod
    def from_pretrained(cls, path, subfolder=None, which="ema", precision=None, layout=None, **overrides):
        """A model in evaluation mode from a folder (diffusers' or ours) or any file that the converters know.

        subfolder: of a pipeline's folder, such as "transformer" or "vae". which, precision, layout: as in
        `ms_latte.checkpoint.load`; overrides: constructor arguments that win over the configuration. Raises
        CheckpointError if the weights are another model's, ConversionError for what cannot be read.
        """
        from pathlib import Path

        from ms_latte import checkpoint

        path = Path(path) if subfolder is None else Path(path) / subfolder
        expected = next(kind.__name__ for kind in cls.__mro__ if kind.__name__ in checkpoint.MODELS)
        return checkpoint.load(
            path, which=which, precision=precision, overrides=overrides, layout=layout, expected=expected
        )
