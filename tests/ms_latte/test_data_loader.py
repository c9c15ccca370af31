# SPDX-License-Identifier: Apache-2.0
"""Order, draws and batches: the same numbers for any number of workers and ranks, and from any step on."""

import gc
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest

from ms_latte.data.clips import ClipDataset
from ms_latte.data.draws import Draws
from ms_latte.data.frames import ClipError
from ms_latte.data.loader import Loader
from ms_latte.data.order import PURPOSES, epoch_order, generator, positions, steps_per_epoch
from tests.layout.tree import ROOT
from tests.ms_latte.tiny_clips import HEIGHT, WIDTH, clip_numbers, write_folder, write_folders

DRAWS = Draws((4, 2, 3, 5), num_timesteps=10, class_dropout_prob=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for i in range(11):
        write_folder(root / f"class{i % 3}" / f"c{i}", 20 + i, 6)
    return root


def clip_set(root, **settings):
    settings = {"class_folders": True, "transform": "none", "flip": True, "use_image_num": 1, **settings}
    return ClipDataset.from_folder(root, 3, (HEIGHT, WIDTH), **settings)


def loader(root, batch_size=2, workers=0, dataset=None, draws=DRAWS, **settings):
    return Loader(dataset or clip_set(root), batch_size, draws, seed=5, workers=workers, **settings)


@pytest.fixture
def prefetch():
    from mindspore.dataset import config

    before = config.get_prefetch_size()
    yield
    config.set_prefetch_size(before)


def equal(one, other):
    assert list(one) == list(other)
    for key in one:
        assert one[key].dtype.kind == other[key].dtype.kind, key
        assert np.array_equal(one[key], other[key]), key
    return True


def joined(*batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


# ------------------------------------------------------------------------------------------------- order and draws


def test_an_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(50, 3, 7)
    assert sorted(order) == list(range(50)) and list(order) != list(range(50))
    assert np.array_equal(order, epoch_order(50, 3, 7))
    assert not np.array_equal(order, epoch_order(50, 3, 8)) and not np.array_equal(
        order, epoch_order(50, 4, 7)
    )
    assert list(epoch_order(4, 3, 7, shuffle=False)) == [0, 1, 2, 3]
    # A changed stream would silently change every resumed run.
    assert list(epoch_order(6, 3407, 0)) == [4, 5, 3, 0, 1, 2]
    assert DRAWS.sample(3407, 1, 2)["t"] == 6


@pytest.mark.parametrize(("world", "batch"), [(1, 3), (2, 3), (3, 2)])
def test_ranks_share_an_epoch_without_overlap(world, batch):
    steps = steps_per_epoch(20, batch, world)
    assert steps == 20 // (world * batch)
    taken = [positions(step, batch, rank, world) for step in range(steps) for rank in range(world)]
    assert np.array_equal(np.concatenate(taken), np.arange(steps * world * batch))


def test_a_tail_is_left_out_or_filled_up():
    assert (steps_per_epoch(7, 2, 2), steps_per_epoch(7, 2, 2, drop_last=False)) == (1, 2)
    assert steps_per_epoch(8, 2, 2, drop_last=False) == 2 and steps_per_epoch(1, 2, 2, drop_last=False) == 1
    with pytest.raises(ValueError, match=r"3 samples make no step of 2 x 2 .*drop_last False"):
        steps_per_epoch(3, 2, 2)
    with pytest.raises(ValueError, match="batch_size 0, world 0: expected at least 1"):
        steps_per_epoch(3, 0, 0)
    with pytest.raises(ValueError, match="rank 2 of 2: expected 0 to 1"):
        positions(0, 1, 2, 2)


def test_every_purpose_has_its_own_numbers():
    first = {generator(1, purpose, 2, 3).random() for purpose in PURPOSES}
    first |= {generator(*at).random() for at in ((2, "clip", 2, 3), (1, "clip", 3, 3), (1, "clip", 2, 4))}
    assert len(first) == len(PURPOSES) + 3
    with pytest.raises(ValueError, match="'dropout': expected one of order, clip"):
        generator(1, "dropout", 2, 3)


def test_draws_have_the_distributions_they_name():
    samples = [DRAWS.sample(1, 0, i) for i in range(2000)]
    noise = np.concatenate([sample["noise"].ravel() for sample in samples])  # 240 000 numbers
    posterior = np.concatenate([sample["posterior"].ravel() for sample in samples])
    # Fixed seeds: these are no random tests. 5 standard errors each.
    for values in (noise, posterior):
        assert abs(values.mean()) < 5 / np.sqrt(values.size) and abs(values.var() - 1) < 5 * np.sqrt(
            2 / values.size
        )
    assert abs(np.corrcoef(noise, posterior)[0, 1]) < 5 / np.sqrt(noise.size)
    counts = np.bincount([sample["t"] for sample in samples], minlength=10)
    assert len(counts) == 10 and ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees, 0.1 %
    assert abs(np.mean([sample["drop"] for sample in samples]) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_draws_are_typed_and_both_ends_of_the_dropout_are_exact():
    sample = DRAWS.sample(1, 2, 3)
    assert {key: (value.dtype.name, np.shape(value)) for key, value in sample.items()} == {
        "t": ("int32", ()),
        "noise": ("float32", (4, 2, 3, 5)),
        "posterior": ("float32", (4, 2, 3, 5)),
        "drop": ("bool", ()),
    }
    for probability, wanted in ((0.0, False), (1.0, True)):
        draws = Draws((1, 1, 1, 1), class_dropout_prob=probability)
        assert {bool(draws.sample(1, 0, i)["drop"]) for i in range(200)} == {wanted}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(latent_shape=(4, 2, 3)), r"latent_shape \(4, 2, 3\): expected four positive sizes"),
        (dict(latent_shape=(4, 2, 3, 0)), "expected four positive sizes"),
        (dict(num_timesteps=0), "num_timesteps 0: expected at least 1"),
        (dict(class_dropout_prob=1.5), r"class_dropout_prob 1.5: expected 0 to 1"),
    ],
)
def test_impossible_draws_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        Draws(**{"latent_shape": (1, 1, 1, 1), **settings})


# ------------------------------------------------------------------------------------------------- batches


def test_a_batch_has_every_column_with_its_type(root):
    batch = next(loader(root).batches(0))
    assert {key: (value.dtype.kind, value.shape) for key, value in batch.items()} == {
        "pixels": ("f", (2, 4, 3, HEIGHT, WIDTH)),
        "label": ("i", (2,)),
        "image_labels": ("i", (2, 1)),
        "caption": ("U", (2,)),
        "t": ("i", (2,)),
        "noise": ("f", (2, 4, 2, 3, 5)),
        "posterior": ("f", (2, 4, 2, 3, 5)),
        "drop": ("b", (2,)),
    }
    assert batch["label"].dtype == batch["t"].dtype == np.int32 and batch["pixels"].dtype == np.float32


@pytest.mark.parametrize("workers", [1, 2, 3])  # MindSpore allows as many as the host has cores
def test_workers_change_nothing(root, workers):
    plain, ahead = loader(root), loader(root, workers=workers)
    pairs = list(zip(plain.batches(1, epochs=2), ahead.batches(1, epochs=2), strict=True))
    assert len(pairs) == 10 and all(equal(*pair) for pair in pairs)
    assert ahead.waited > 0


def test_columns_without_elements_and_texts_pass_the_pipeline(root, tmp_path):
    (tmp_path / "t.csv").write_text(
        "video,caption\nclass0/c0,kurz\nclass1/c1,etwas länger 長い\nclass2/c2,\n"
    )
    data = clip_set(root, class_folders=False, use_image_num=0, csv_path=tmp_path / "t.csv")
    batches = [next(loader(root, 3, workers, data).batches(0)) for workers in (0, 2)]
    assert equal(*batches) and batches[0]["image_labels"].shape == (3, 0)
    assert sorted(batches[0]["caption"]) == ["", "etwas länger 長い", "kurz"]


def test_two_ranks_together_are_one_process_with_the_doubled_batch(root):
    one = list(loader(root, 4).batches(3))
    ranks = [list(loader(root, 2, rank=rank, world=2, workers=1).batches(3)) for rank in range(2)]
    assert len(one) == len(ranks[0]) == 2
    for whole, *halves in zip(one, *ranks, strict=True):
        assert equal(whole, joined(*halves))


def test_a_run_enters_any_step_of_any_epoch(root):
    through = list(loader(root, workers=2).batches(0, epochs=2))
    later = list(loader(root, workers=2).batches(0, first_step=3, epochs=2))
    assert len(through) == 10 and len(later) == 7
    assert all(equal(*pair) for pair in zip(through[3:], later, strict=True))
    assert equal(through[6], next(loader(root).batches(1, first_step=1)))
    assert equal(through[6], loader(root).batch(1, 1))


def test_epochs_and_seeds_differ(root):
    data = loader(root)
    first, second = next(data.batches(0)), next(data.batches(1))
    other = next(Loader(data.samples, 2, DRAWS, seed=6, workers=0).batches(0))
    for key in ("pixels", "noise", "posterior"):
        assert not np.array_equal(first[key], second[key]) and not np.array_equal(first[key], other[key])


def test_an_epoch_takes_every_clip_once_and_names_them(root):
    data = loader(root, 1)
    seen = [clip_numbers(batch["pixels"][0])[0][0] for batch in data.batches(2)]
    assert sorted(seen) == list(range(20, 31))
    names = [data.names(2, step)[0] for step in range(11)]
    assert [int(name.split("/c")[1]) + 20 for name in names] == seen
    assert sorted(i for step in range(11) for i in data.indices(2, step)) == list(range(11))


def test_a_filled_up_batch_repeats_clips_with_other_draws(root):
    data = loader(root, 4, drop_last=False)
    batches = list(data.batches(0))
    assert len(batches) == 3 and batches[2]["pixels"].shape[0] == 4
    assert data.names(0, 2)[3] == data.names(0, 0)[0]
    assert not np.array_equal(batches[2]["noise"][3], batches[0]["noise"][0])


def test_without_draws_a_batch_is_the_samples(root):
    assert "t" not in next(loader(root, draws=None).batches(0))


# ------------------------------------------------------------------------------------------------- failures and ends


def break_clip(root, index):
    for file in (root / f"c{index}").iterdir():
        file.write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_names_the_file_at_its_batch(tmp_path, workers):
    break_clip(write_folders(tmp_path, [5] * 8), 5)
    data = clip_set(tmp_path, class_folders=False, use_image_num=0, policy="fail")
    list(
        loader(tmp_path, 1, workers, data, shuffle=False).batches(0, first_step=6)
    )  # MindSpore's own threads
    gc.collect()
    threads = psutil.Process().num_threads()
    batches, got = loader(tmp_path, 2, workers, data, shuffle=False).batches(0), 0
    with pytest.raises(ClipError, match=r"c5/frame\d\.png: cannot identify image file") as caught:
        for _ in batches:
            got += 1
    assert got == 2 and "mindspore" not in str(caught.value)  # the third holds clips 4 and 5
    assert psutil.Process().num_threads() <= threads  # though the error still holds the frames it passed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_clip_is_replaced_alike_by_any_number_of_workers(tmp_path, workers):
    break_clip(write_folders(tmp_path, [5] * 6), 2)
    data = clip_set(tmp_path, class_folders=False, use_image_num=0)
    batches = list(loader(tmp_path, 2, workers, data, shuffle=False).batches(0))
    clips = [clip_numbers(pixels)[0][0] for batch in batches for pixels in batch["pixels"]]
    assert clips == [20, 21, 23, 23, 24, 25]
    assert data.report.counts == {"c2": 1} and "c2/frame" in data.report.reasons["c2"]


def test_samples_of_different_shapes_are_one_clear_error(root):
    class Uneven:
        def __len__(self):
            return 4

        def name(self, index):
            return f"sample {index}"

        def get(self, index, rng):
            return {"x": np.zeros(2 + index // 2)}

    data = Loader(Uneven(), 4, None, seed=0, workers=0, shuffle=False)
    with pytest.raises(
        ValueError, match=r"sample 2: columns \{'x': \(3,\)\}, but others of its batch have \{'x': \(2,\)"
    ):
        next(data.batches(0))


def test_leaving_early_ends_every_worker(root):
    # The first pipeline of a process starts threads of MindSpore itself that stay.
    list(loader(root, workers=2).batches(0))
    gc.collect()
    process = psutil.Process()
    before = process.num_threads()
    for _ in range(3):
        batches = loader(root, 1, workers=2).batches(0, epochs=50)
        next(batches)
        batches.close()
    gc.collect()
    assert process.num_threads() <= before and process.children(recursive=True) == []
    assert threading.current_thread() is threading.main_thread()


def test_a_process_that_leaves_its_loader_behind_ends(root):
    code = (
        "from ms_latte import device; device.select('CPU')\n"
        "import mindspore as ms\n"
        "from tests.ms_latte.test_data_loader import loader\n"
        f"batches = loader({str(root)!r}, 1, workers=2).batches(0, epochs=1000)\n"
        "print((ms.Tensor(next(batches)['pixels']) * 2).shape)\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3 and done.stdout.strip() == f"(1, 4, 3, {HEIGHT}, {WIDTH})", done.stderr


def test_mindspores_own_setting_is_restored(root, prefetch):
    from mindspore.dataset import config

    config.set_prefetch_size(7)
    list(loader(root, workers=1).batches(0))
    assert config.get_prefetch_size() == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: next(data.batches(0, first_step=5)), "first_step 5, epochs 1: expected a step below 5"),
        (lambda data: next(data.batches(-1)), "epoch -1"),
        (lambda data: data.dataset(0, epochs=0), "epochs 0"),
        (lambda data: data.dataset(0, columns=["pixels", "caption"]), "expected some of pixels, label"),
        (lambda data: Loader(data.samples, 2, None, 0, workers=-1), "workers -1, prefetch 1"),
        (lambda data: Loader(data.samples, 20, None, 0), "11 samples make no step of 1 x 20"),
        (lambda data: Loader(data.samples, 2, None, 0, rank=2, world=2), "rank 2 of 2"),
    ],
)
def test_impossible_requests_are_one_clear_error(root, call, message):
    with pytest.raises(ValueError, match=message):
        call(loader(root))


# ------------------------------------------------------------------------------------------------- sink mode


def test_the_object_for_sink_mode_has_the_same_batches(root, prefetch):
    data = loader(root, workers=2)

    def scalars(step):
        return {"lr": np.float32(1 / (step + 1)), "clip": np.bool_(step >= 7)}

    rows = data.dataset(1, first_step=3, epochs=2, scalars=scalars)
    names = ["pixels", "label", "image_labels", "t", "noise", "posterior", "drop", "lr", "clip"]
    assert rows.get_col_names() == names and rows.get_dataset_size() == 7
    got = list(rows.create_dict_iterator(num_epochs=1, output_numpy=True))
    wanted = list(data.batches(1, first_step=3, epochs=2))
    for step, (row, batch) in enumerate(zip(got, wanted, strict=True), 8):
        batch.pop("caption")
        assert equal(row, {**batch, **scalars(step)})
        assert row["lr"].dtype == np.float32 and row["lr"].shape == ()
    chosen = data.dataset(0, scalars=scalars, columns=["lr", "noise"])
    assert chosen.get_col_names() == ["lr", "noise"]


def test_columns_without_elements_are_left_out_of_it(root, prefetch):
    data = loader(root, dataset=clip_set(root, use_image_num=0), draws=None)
    assert data.dataset(0).get_col_names() == ["pixels", "label"]


def test_its_failure_is_kept(tmp_path, prefetch):
    break_clip(write_folders(tmp_path, [5] * 4), 1)
    data = loader(
        tmp_path,
        dataset=clip_set(tmp_path, class_folders=False, use_image_num=0, policy="fail"),
        shuffle=False,
    )
    with pytest.raises(RuntimeError):
        list(data.dataset(0).create_dict_iterator(num_epochs=1, output_numpy=True))
    assert isinstance(data.failure, ClipError) and "c1/frame" in str(data.failure)
