"""Batch transforms: limits, round trips, odd input."""
import pickle
import numpy as np, pytest, torch
from fastai.data.core import Pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails
from jetbook.data.hdf5 import sample
from jetbook.data.transforms import (Flip, HistEq, JetTransform, Log1p, MaxNorm, MinMax, Pad, Power, Resize, Rotate, Standardise,
    Translate, Uint8, borrow_undo)


@pytest.fixture(scope='module')
def store(): return sample('qg').select(np.arange(500))


@pytest.fixture(scope='module')
def x(store): return store.images(slice(0, 64))


class Double(JetTransform):
    def encodes(self, x: torch.Tensor): return 2*x
    def decodes(self, x: torch.Tensor): return x/2


def same_pixels(a, b): eq(a.flatten(1).sort(1).values, b.flatten(1).sort(1).values)


def test_what_is_no_image_is_left_alone(x):
    y = torch.tensor([0, 1])
    eq(Double()([x[:2], y])[0], 2*x[:2])
    eq(Double()(y), y)
    assert Double()(None) is None


def test_undo_is_a_stack(x):
    t = MinMax()
    a = t(t(x))
    eq(len(a.undo), 2)
    eq(len(t.decode(a).undo), 1)
    close(t.decode(t.decode(a)), x, eps=1e-6)
    b = Double()(t(x))
    eq(len(b.undo), 1)
    close(t.decode(Double().decode(b)), x, eps=1e-6)
    pred = t(x)*.5
    fails(lambda: t.decode(borrow_undo(pred[:2], t(x))), contains='parameters of another')
    borrow_undo(pred, t(x))
    assert not hasattr(pred, 'undo')  # a view carries it
    eq([o[0] for o in Pipeline([MinMax(), Pad()])(x).undo], ['MinMax', 'Pad'])


def test_minmax(x):
    t, empty = MinMax(), torch.zeros(2, 3, 5, 5)
    eq(t(empty), empty)
    eq(t.decode(t(empty)), empty)
    y = MinMax('jet')(x)
    close(y.amax((1, 2, 3)), torch.ones(64), eps=1e-4)
    close(y.sum((2, 3))/y.sum((1, 2, 3))[:, None], x.sum((2, 3))/x.sum((1, 2, 3))[:, None], eps=1e-4)
    lit = x.amax((2, 3))>1e-3
    close(t(x).amax((2, 3))[lit], torch.ones(int(lit.sum())), eps=1e-4)
    fails(lambda: MinMax('image'), contains="per='jet'")


def test_maxnorm(store, x):
    for t in (MaxNorm(), MaxNorm('channel'), MaxNorm(top=2.), MaxNorm.from_store(store, 'channel')): close(t.decode(t(x)), x, eps=1e-6)
    eq(MaxNorm.from_store(store).top.item(), max(float(v.max()) for _, _, v in store.entries.values()))
    close(MaxNorm('channel')(x), MinMax(eps=1e-12)(x), eps=1e-5)
    eq(MaxNorm()(torch.zeros(2, 3, 5, 5)), torch.zeros(2, 3, 5, 5))
    close(MaxNorm()(-x).amin((1, 2, 3)), -torch.ones(64), eps=1e-6)


def test_standardise(store, x):
    t = Standardise.from_store(store[:64])
    close(t(x).std((0, 2, 3)), torch.ones(3), eps=1e-3)
    close(t(x).mean((0, 2, 3)), torch.zeros(3), eps=1e-4)
    eq((t.mean.shape, Standardise.from_store(store, per='all').mean.shape), ((1, 3, 1, 1), (1, 1, 1, 1)))
    fails(lambda: Standardise(0, 0), contains='positive')


def test_power_and_logarithm(x):
    for g in (.25, .5, 2.): close(Power(g).decode(Power(g)(x)), x, eps=1e-5)
    fails(lambda: Power(0), contains='positive')
    eq(Log1p()(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_histogram_equalisation(store, x):
    t = HistEq.from_store(sample('qg'), 2000)
    close(t.decode(t(3*x)), 3*x, eps=1e-3)
    v = torch.linspace(-.5, 1.5, 41).view(1, 1, 1, 41).repeat(1, 3, 1, 1)
    close(t(t.decode(v)), v, eps=1e-4)  # a network's output, negative values too
    y = t(x)
    for c in range(3): close(y[:, c][y[:, c]>0].median(), .5, eps=.05)
    knots = torch.tensor([.25, .5, .75, 1.]).view(1, 1, 1, 4)
    close(HistEq([[.5, .5, 1.]])(knots).flatten(), torch.tensor([1/3, 2/3, 5/6, 1.]), eps=1e-6)
    fails(lambda: HistEq([[]]), contains='lit pixels')
    fails(lambda: HistEq([[-1., 1.]]), contains='positive')
    fails(lambda: t(x[:, :1]), contains='channels')


def test_eight_bits(x):
    u, m = Uint8(), MinMax()
    y = m(x)
    codes = Uint8(as_bytes=True)(y)
    close(u.decode(codes), u.decode(u(y)), eps=1e-6)
    assert ((m.decode(u.decode(codes))-x).abs() <= x.amax((2, 3), keepdim=True)/509).all()  # 1/510 of each channel's brightest pixel
    eq(Uint8(2.)(torch.tensor([-1., 0, 2, 5]).view(1, 1, 1, 4)).flatten(), torch.tensor([0., 0, 1, 1]))
    fails(lambda: Uint8(0), contains='positive')


def test_sizes_come_back(x):
    for t in (Pad(), Resize()): eq(t.decode(t(x)).shape, x.shape)


def test_flips(x):
    eq(Flip(0, 0)(x), x)
    eq(Flip(1, 1)(Flip(1, 1)(x)), x)
    eq(Flip(seed=3)(x, split_idx=None), x)
    a, b = Flip(seed=1)((x, 2*x))
    eq(2*a, b)
    pipe = Pipeline([Flip(1, 1), MinMax()], split_idx=1)
    eq(pipe((x, x))[0], MinMax()(x))
    pipe.split_idx = 0
    eq(pipe((x, x))[1], MinMax()(x.flip(-1, -2)))
    y = Flip(seed=0)(x)
    kinds = [sum(torch.equal(o, q) for o, q in zip(y, ref)) for ref in (x, x.flip(-1), x.flip(-2), x.flip(-1, -2))]
    eq(sum(kinds), 64)
    assert min(kinds)>6, kinds


def centroid(x):
    p = x.sum(1)
    s = p.sum((1, 2))
    return torch.stack([(p.sum(2)*torch.arange(p.shape[1])).sum(1)/s, (p.sum(1)*torch.arange(p.shape[2])).sum(1)/s])


def test_rotations(store, x):
    move, grid = (Rotate(how=k, seed=0)(x) for k in ('move', 'grid'))
    change = {k: y.sum((1, 2, 3))/x.sum((1, 2, 3)) for k, y in dict(move=move, grid=grid).items()}
    assert change['move'].std() < 1.05*change['grid'].std()  # of both, what the corners held: pile-up
    assert (move.sum((1, 2, 3)) <= x.sum((1, 2, 3))*(1+1e-5)).all()
    assert ((grid[:, 1]>0).sum((1, 2))/(x[:, 1]>0).sum((1, 2))).median()>2
    near = (torch.arange(125)-62).abs()<40
    inner = x*near[:, None]*near
    assert (centroid(Rotate(seed=5)(inner))-centroid(Rotate(seed=5, how='grid')(inner))).abs().max()<1
    w = torch.zeros(3, 1, 20, 30)
    w[:, 0, 12, 14], w[:, 0, 9, 20] = 1, .5
    a, b = Rotate(seed=1)(w), Rotate(seed=1, how='grid')(w)
    assert (centroid(a)-centroid(b)).abs().max()<1
    close(a.sum(), 4.5)
    assert centroid(a)[0].std()>.5
    assert (Rotate(10, seed=0).draw(x)[0].abs() <= np.deg2rad(10)).all()
    eq(Rotate(0)(x), x)
    r = Rotate(step=90, seed=0)
    r(x)
    eq(r.drawn[0].unique().numel(), 5)
    fails(lambda: Rotate(how='spin'), contains="'grid'")


def test_shifts(store, x):
    t = Translate(eta=30, phi=30, wrap=False, seed=0)
    y = t(x)
    di, dj = (int(o[0]) for o in t.drawn)
    eq(y[0, :, max(di, 0):125+min(di, 0), max(dj, 0):125+min(dj, 0)], x[0, :, max(-di, 0):125+min(-di, 0), max(-dj, 0):125+min(-dj, 0)])
    assert (y.sum((1, 2, 3)) <= x.sum((1, 2, 3))*(1+1e-5)).all()
    t = Translate(eta=10, phi=10, step=5, seed=2)
    y = t(x)
    eq({int(o) for d in t.drawn for o in d}, {-10, -5, 0, 5, 10})
    blocks = y[:, 2].unfold(1, 5, 5).unfold(2, 5, 5).flatten(3)
    eq(blocks.amax(-1), blocks.amin(-1))  # towers stay on their grid
    d = Translate(3, 1).draw(store.images(slice(0, 300)))
    eq([(o.min().item(), o.max().item()) for o in d], [(-3, 3), (-1, 1)])


class NoDoubles(TorchDispatchMode):
    "Stands in for an Apple GPU, which has no float64: an operation that makes one is an error"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        res = func(*args, **(kwargs or {}))
        for o in res if isinstance(res, (tuple, list)) else [res]:
            if isinstance(o, torch.Tensor) and o.dtype == torch.float64:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't: {func}")
        return res


def test_no_double_precision_on_the_device(store, x):
    "Neither in transforms, nor where batches are made on a device"
    from jetbook.data.loaders import jet_dls
    from jetbook.data.store import _images_torch

    tfms = [MinMax(), MinMax('jet'), MaxNorm(), MaxNorm.from_store(store, 'channel'), Standardise.from_store(store, 400, clip0=True),
            Log1p(), Power(), HistEq.from_store(store, 400), Uint8(), Pad(), Resize(), Flip(seed=1), Rotate(seed=1), Rotate(how='grid'),
            Rotate(step=90), Translate(seed=1)]
    entries = {k: tuple(torch.from_numpy(a) for a in (o, p.astype(np.int32), v)) for k, (o, p, v) in store.entries.items()}
    on_device = store._replace(entries=entries)
    dls = jet_dls(store, tfms=[MinMax(), Pad()], bs=16)
    with NoDoubles():
        with pytest.raises(TypeError, match='MPS'):
            torch.zeros(1).double()
        for t in tfms:
            t.decode(t(x[:8]))
        eq(_images_torch(on_device, torch.arange(4)), x[:4])
        for dl in (dls.train, dls.valid):
            b = dl.one_batch()
            dl.decode(b[:1])
            eq([o.dtype for o in b], [torch.float32, torch.int64])


def test_pickle_repr_and_nothing_in_place(store, x):
    before, few = x.clone(), x[:8]
    plain = [MinMax(), MaxNorm(), MaxNorm.from_store(store), Standardise.from_store(store, 400), Log1p(), Power(), HistEq.from_store(store, 400), Uint8(), Pad(), Resize()]
    for t in plain:
        again = pickle.loads(pickle.dumps(t))
        eq(again(few), t(few))
        eq(repr(again), repr(t))
        eq(t.decode(t(few)).shape, (8, 3, 125, 125))
    for t in (Flip(seed=1), Rotate(seed=1), Translate(seed=1)):
        t(few)
        again = pickle.loads(pickle.dumps(t))
        eq(again(few), t(few))
        eq(t.decode(few), few)
    eq(x, before)
    assert not hasattr(x, 'undo')
