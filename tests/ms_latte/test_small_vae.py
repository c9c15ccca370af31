# SPDX-License-Identifier: Apache-2.0
"""The small VAE: its fast formulation, that it learns, that its file samples and encodes with its own factor."""

import mindspore as ms
import numpy as np
import pytest

from ms_latte import checkpoint, shapes, small_vae
from ms_latte.config import ConfigError
from ms_latte.encoders.vae import AutoencoderKL
from ms_latte.encoders.vae_layers import FORMULATIONS
from ms_latte.parts import factor_of
from ms_latte.sample_config import latent_size
from tests.helpers import normal

TINY = dict(block_out_channels=[4, 8], norm_num_groups=2)


def pictures():
    return np.concatenate([shapes.clip(i, 2, 16) for i in range(6)])


@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 1, 0), (3, 2, 1)])
def test_all_pictures_at_once_are_the_pictures_one_by_one(k, stride, padding):
    x, w, b = normal(3, 4, 9, 7, seed=1), normal(5, 4, k, k, seed=2), normal(5, seed=3)
    forms = FORMULATIONS["conv2d"]
    one, all_ = (
        forms[name](*(ms.Tensor(v) for v in (x, w, b)), stride, padding).asnumpy()
        for name in ("im2col", "im2col_batch")
    )
    np.testing.assert_allclose(all_, one, rtol=0, atol=1e-5)  # float32 sums of 36 products of size one


def test_fitting_learns_repeats_itself_and_sets_the_scale():
    def fitted():
        vae, losses = small_vae.fresh(np.random.default_rng(0), **TINY), []
        vae = small_vae.fit(
            vae, pictures(), 8, batch_size=2, seed=3, on_step=lambda i, loss: losses.append(loss)
        )
        return vae, losses

    vae, losses = fitted()
    assert losses[-1] < 0.8 * losses[0]
    again, same = fitted()
    assert losses == same and vae.scaling_factor == again.scaling_factor
    mean, _ = vae.encode(small_vae.to_tensor(pictures()))
    assert vae.scaling_factor * mean.asnumpy().std() == pytest.approx(1, rel=1e-4)  # of float32 statistics


def test_its_file_keeps_what_no_tensor_shows(tmp_path):
    vae = small_vae.fresh(np.random.default_rng(0), **TINY, scaling_factor=0.7)
    checkpoint.save(vae, tmp_path / "vae.safetensors")
    held = checkpoint.load(tmp_path / "vae.safetensors")
    assert isinstance(held, AutoencoderKL) and held.config == vae.config
    assert small_vae.psnr(held, pictures()) == small_vae.psnr(vae, pictures())


def test_the_factor_is_that_of_the_vae():
    vae = small_vae.fresh(np.random.default_rng(0))
    assert (factor_of(vae), factor_of(None)) == (4, 8)
    assert latent_size((32, 20), factor_of(vae)) == (8, 5) and latent_size((32, 40)) == (4, 5)
    with pytest.raises(ConfigError, match=r"--image_size 30x32: expected multiples of 4 .* nearest 32x32"):
        latent_size((30, 32), 4)
    with pytest.raises(ConfigError, match=r"--image_size 3x32: .* nearest 4x32"):
        latent_size((3, 32), 4)
