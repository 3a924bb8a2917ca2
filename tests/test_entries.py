"""Transforms on entries equal those on dense images, and memory of batches is used again only when it is free."""

import threading
import numpy as np
import pytest
import torch
from fastai.data.core import Pipeline, Transform
from fastcore.test import test_eq as eq
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import JetDL, jet_dls
from jetbook.data.store import JetStore, SpareMemory, toy_jets
from jetbook.data.transforms import (
    Flip,
    HistEq,
    JetTransform,
    Log1p,
    MaxNorm,
    MinMax,
    Pad,
    Power,
    RandomTransform,
    Resize,
    Rotate,
    Standardise,
    Translate,
    Uint8,
)


class Negative(JetTransform):
    "A transform of a user's own"

    by_pixel = True

    def encodes(self, x: torch.Tensor):
        return 1 - 2 * x


class Noise(JetTransform):
    "One that needs all pixels"

    def encodes(self, x: torch.Tensor):
        return x + torch.arange(x.shape[-1])


class Scale(RandomTransform):
    by_pixel = True

    def draw(self, x):
        return [self._uniform(len(x))]

    def encodes(self, x: torch.Tensor):
        return x * self.drawn[0].view(-1, 1, 1, 1)


def any_store(rng):
    "Any size, channels and towers: dark, sparse and full images, zeros and negative values among the entries"
    h, w = rng.integers(1, 5, 2) * 6
    h = w if rng.random() < 0.5 else h
    n, entries, up, corrections = int(rng.integers(1, 9)), {}, {}, {}
    for c in range(rng.integers(1, 4)):
        up[f'c{c}'] = int(rng.choice([1, 2, 3, 6]))
        cells = int(h * w) // up[f'c{c}'] ** 2
        lit = rng.random((n, cells)) < rng.choice([0, 0.02, 0.3, 1], (n, 1))
        jet, pixel = lit.nonzero()
        v = rng.lognormal(-3, 2, len(jet)) * rng.choice(
            [1, 1, 1, -1, 0], len(jet) if rng.random() < 0.5 else 1
        )
        entries[f'c{c}'] = (np.searchsorted(jet, np.arange(n + 1)), pixel, v)
        if rng.random() < 0.3:  # jets with pixels that differ from their towers
            jet, pixel = (rng.random((n, h * w)) < rng.choice([0, 0.1, 1], (n, 1))).nonzero()
            v = rng.choice([0, 0.5, 7, -1], len(jet))
            corrections[f'c{c}'] = (np.searchsorted(jet, np.arange(n + 1)), pixel, v)
    return JetStore.from_entries(
        entries, int(h), int(w), up, dict(y=np.arange(n) % 2), corrections=corrections
    )


def transforms(C, size):
    "One of each kind, made anew: a list of functions"
    return dict(
        MinMax=lambda s: MinMax(),
        jet=lambda s: MinMax('jet', 1e-3),
        MaxNorm=lambda s: MaxNorm(),
        channel=lambda s: MaxNorm('channel'),
        top=lambda s: MaxNorm(top=np.arange(1, C + 1)),
        mean=lambda s: Standardise(np.arange(C) / 9, np.arange(1, C + 1) / 7),
        clip=lambda s: Standardise(0.1, 0.3, clip0=True),
        Log1p=lambda s: Log1p(100),
        sqrt=lambda s: Power(),
        power=lambda s: Power(0.3),
        HistEq=lambda s: HistEq([[0.01, 0.1, 0.2, 1.0]] * C),
        Uint8=lambda s: Uint8(),
        bytes=lambda s: Uint8(as_bytes=True),
        Pad=lambda s: Pad(size + 3),
        Pad2=lambda s: Pad(size + 8),
        Resize=lambda s: Resize(20),
        Flip=lambda s: Flip(seed=s),
        Rotate=lambda s: Rotate(step=90, seed=s),
        half=lambda s: Rotate(step=180, seed=s),
        any=lambda s: Rotate(seed=s),
        Translate=lambda s: Translate(5, 7, seed=s),
        cut=lambda s: Translate(30, 30, wrap=False, step=3, seed=s),
        Negative=lambda s: Negative(),
        Noise=lambda s: Noise(),
        Scale=lambda s: Scale(seed=s),
    )


def same(a, b, what):
    eq((a.shape, a.dtype), (b.shape, b.dtype))
    assert torch.equal(a, b), what


def both(store, fs, split_idx, seed=3):
    "Loaders and dense pipelines in turn: the images, what undoes them, and the images without the transforms"
    dl = JetDL(store, tfms=fs(seed), bs=3, split_idx=split_idx)
    dense = Pipeline(fs(seed), split_idx=split_idx)
    for epoch in range(2):
        for i, b in enumerate(dl):
            idx = dl.idx[3 * i : 3 * i + 3]
            x = store.images(idx)
            y = dense(x + 0) if len(dense.fs) else x
            yield b[0], y, dl, dense


@pytest.mark.parametrize('seeds', np.array_split(np.arange(400), 4))
def test_any_pipeline_on_any_store(seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        store = any_store(rng)
        kinds = transforms(len(store.channels), max(store.height, store.width))
        del kinds['power']  # torch does not give the same bits for the same numbers at the end of an array
        names = rng.choice(list(kinds), rng.integers(1, 6)).tolist()
        sizes = [k for k in names if k in ('Pad', 'Pad2', 'Resize')]
        names = [
            k for i, k in enumerate(names) if k not in sizes[1:] and (k != 'bytes' or i == len(names) - 1)
        ]
        made = lambda s: [kinds[k](s) for k in names]
        for x, y, dl, dense in both(store, made, int(rng.random() < 0.2)):
            same(x, y, names)
            a, b = (getattr(o, 'undo', None) for o in (x, y))
            eq(a and [(n, k) for n, k, _ in a], b and [(n, k) for n, k, _ in b])
            for (_, _, p), (_, _, q) in zip(a or (), b or ()):
                for o, r in zip(p, q):
                    same(torch.as_tensor(o), torch.as_tensor(r), names)
            if a is not None and not {'Negative', 'Noise', 'Scale'} & set(names):  # these cannot be undone
                same(dl.decode((x,))[0], dense.decode(y).float(), names)


@pytest.mark.parametrize('kind', ['qg', 'tau', 'egamma', 'dark', 'wqcd'])
def test_samples_bit_for_bit(kind):
    "Also where torch's last bit depends on the place in an array: the entries are computed in whole vectors"
    store = sample(kind)[:96]
    C = len(store.channels)
    for names in (
        ('Log1p', 'jet'),
        ('power', 'MaxNorm', 'Pad2'),
        ('HistEq', 'Flip'),
        ('sqrt', 'Rotate', 'Translate', 'mean'),
    ):
        kinds = transforms(C, store.width)
        dl = JetDL(store, tfms=[kinds[k](1) for k in names], bs=32, split_idx=0)
        dense = Pipeline([kinds[k](1) for k in names], split_idx=0)
        for i, (x, y) in enumerate(dl):
            same(x, dense(store.images(slice(32 * i, 32 * i + 32))), names)


class Moved(Flip):
    "Another `encodes`, so what its parent says of entries does not hold"

    def encodes(self, x: torch.Tensor):
        return x.roll(1, -1)


class Brighter(MinMax):
    def encodes(self, x: torch.Tensor):
        return x + 1


class Wider(JetTransform):
    by_pixel = True

    def encodes(self, x: torch.Tensor):
        return x.double()


def test_which_transforms_act_on_entries():
    store = toy_jets(4)
    e = lambda: store.batch_entries()
    can = [t for t in transforms(3, 125).items() if t[1](0).on_entries(e(), split_idx=0) is not None]
    eq({'bytes', 'Resize', 'any', 'Noise'}, set(transforms(3, 125)) - {k for k, _ in can})
    for t in (Moved(), Brighter(), Rotate(how='grid', step=90)):
        assert t.on_entries(e(), split_idx=0) is None
    with pytest.raises(ValueError, match='Wider is not by_pixel'):
        Wider().on_entries(e())
    shifted = Translate().on_entries(e(), split_idx=0)
    assert Flip().on_entries(shifted, split_idx=0) is None  # of a block that was cut, a part would come back
    assert Rotate(step=90).on_entries(shifted, split_idx=0) is None
    lifted = Negative().on_entries(e())
    assert (
        Pad().on_entries(lifted) is None and Translate().on_entries(lifted, split_idx=0) is None
    )  # 0 is not empty there
    assert Flip().on_entries(lifted, split_idx=0) is lifted
    twice = JetStore.from_entries(dict(a=([0, 2], [3, 3], [5.0, 1.0])), 5, 5)  # what is painted last stays
    assert twice.batch_entries([0]) is None
    eq(JetDL(twice, task='reconstruct', tfms=[MaxNorm()]).one_batch()[0].sum(), 1)
    with pytest.raises(ValueError, match='shrink'):
        jet_dls(toy_jets(40), tfms=[Pad(100)], bs=4).one_batch()


def test_a_buffer_takes_jets_and_entries_in_turn():
    store, buf = toy_jets(8), toy_jets(8).buffer(8)
    rng = np.random.default_rng(0)
    for _ in range(30):
        idx = rng.integers(0, 8, rng.integers(0, 9))
        kind = rng.integers(0, 3)
        e = store.batch_entries(idx)
        want = store.images(idx)
        if kind == 1:
            e = Negative().on_entries(e)
            want = 1 - 2 * want
        got = buf.fill(store, idx) if kind == 2 else buf.fill(e)
        assert torch.equal(got, want)
        if rng.random() < 0.2:
            buf.array[:] = np.nan
            buf.dirty = True


def test_learners_see_what_they_saw():
    "Reconstruction, validation, other jets, learned transforms, transforms of fastai's"

    class Centre(Transform):
        order = -1

        def setups(self, dl: JetDL):
            self.mean = torch.cat([x for x, *_ in dl]).mean()

        def encodes(self, x: torch.Tensor):
            return x - self.mean

    store = toy_jets(60, 'wqcd')
    dls = jet_dls(store, task='reconstruct', tfms=[MinMax(), Pad(32), lambda x: x * 2], bs=8)
    x, y = dls.valid.one_batch()
    assert x is y
    want = 2 * Pad(32)(MinMax()(store.images(dls.split.valid[:8])))
    eq(x, want)
    assert torch.equal(dls.test_dl([3, 4]).one_batch()[0], 2 * Pad(32)(MinMax()(store.images([3, 4]))))
    dls = jet_dls(store, tfms=[MinMax(), Centre()], bs=8)
    eq(dls.valid.one_batch()[0], MinMax()(store.images(dls.split.valid[:8]) - dls.train.tfms.fs[0].mean))


def spare(store):
    "Batches that were written to unseen, kept in part, and dropped"
    rng, kept = np.random.default_rng(0), []
    for i in range(40):
        idx = rng.integers(0, len(store), 4)
        x = store.images(idx)
        assert torch.equal(x, store.images(idx, out=store.buffer(4)))
        if i % 3 == 0:
            x.numpy()[:, :, i] = 7
        if i % 3 == 1:
            x.data.add_(1)
        if i % 4 == 0:
            kept.append((x[1:3].numpy()[:, 0] if i % 8 else x.detach()[1:3, 0], x[1:3, 0].clone()))
        del x
        for a, b in kept[-12:]:
            assert torch.equal(torch.as_tensor(a), b)
    return True


def test_memory_is_used_again_when_nothing_refers_to_it():
    store = toy_jets(20)
    assert spare(store)
    wrong = []

    def run():
        try:
            spare(store)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    eq(wrong, [])
    grad = store.images([0, 1]).requires_grad_()
    loss = (grad**2).sum()  # keeps the batch for the gradient
    want = grad.detach().clone()
    where = grad.data_ptr()
    del grad
    assert store.images([2, 3]).data_ptr() != where
    loss.backward()
    assert torch.equal(store.images([0, 1]), want)


class Batches(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 6

    def __getitem__(self, i):
        spare(self.store)
        return self.store.images([i, i + 1])


def test_in_workers():
    "Forked while memory is lent"
    store = toy_jets(20)
    held = store.images([0, 1])
    for start in ('fork', 'spawn'):
        got = list(
            torch.utils.data.DataLoader(
                Batches(store), batch_size=None, num_workers=2, multiprocessing_context=start
            )
        )
        for i, x in enumerate(got):
            assert torch.equal(x, store.images([i, i + 1]))
    assert torch.equal(held, store.images([0, 1]))


def test_limits_of_spare_memory():
    m = SpareMemory(most=4000, n=2)
    a, used = m.take((500,))
    eq((used, len(m.blocks)), (False, 1))
    b, _ = m.take((1001,))  # too large to be kept
    eq(len(m.blocks), 1)
    c, _ = m.take((600,))  # with `a` it would be too much: the older one is let go
    eq([len(o) for o, _ in m.blocks], [600])
    d, e, f = (m.take((10,))[0] for _ in range(3))
    eq(len(m.blocks), 2)
    del d, e, f
    eq([m.take((k,))[1] for k in (4, 10, 8, 5)], [False, True, True, True])
    eq(m.take((0, 3))[0].shape, (0, 3))
    fresh, used = SpareMemory().take((3, 2))
    eq((used, fresh.tolist()), (False, [[0, 0]] * 3))


def test_torch_datasets_are_asked_for_batches():
    store = toy_jets(10)
    for b, idx in zip(torch.utils.data.DataLoader(store, batch_size=4), ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])):
        assert torch.equal(b['image'], store.images(idx))
        eq(b['y'].tolist(), store.columns['y'][idx].tolist())
    eq(sorted(store.__getitems__([1])[0]), sorted(store[1]))


def test_a_file_that_is_cut_while_a_loader_reads_it(tmp_path):
    store = toy_jets(40)
    store.save(tmp_path / 's.h5')
    mapped = JetStore(tmp_path / 's.h5', mmap=True)
    dl = JetDL(mapped, tfms=[MinMax()], bs=8)
    eq(dl.one_batch()[0], MinMax()(store.images(slice(8))))
    with open(tmp_path / 's.h5', 'r+b') as f:
        f.truncate(1000)
    with pytest.raises(ValueError, match='was cut while in use'):
        dl.one_batch()
    with pytest.raises(IndexError):
        store.batch_entries([40])
