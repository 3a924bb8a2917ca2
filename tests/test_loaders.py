"""Splits and loaders: requests that cannot be met, lent memory, fastai's own tools."""
import copy, warnings
import numpy as np, pytest, torch
import fastai.callback.all  # lr_find and mixed precision, patched onto Learner
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails
from torch import nn
from jetbook.data.loaders import BatchPool, JetDL, Split, StoreDL, epoch_order, jet_dls, split
from jetbook.data.store import toy_jets


@pytest.fixture(scope='module')
def store(): return toy_jets(600)


def test_splits_that_cannot_be_made(store):
    fails(lambda: split(store, valid=1.5), contains='between 0 and 1')
    fails(lambda: split(store, valid=.5, test=.5), contains='No jets are left')
    fails(lambda: split(toy_jets(6)), contains='Too few jets')
    fails(lambda: split(store, by='flavour'), contains='No column to stratify by')


def test_memory_of_batches_that_die_unseen(store):
    pool, idx = BatchPool(), np.arange(8)
    want = store.images(idx)

    def dies_unseen(): pool.lend(store, idx).sub_(1)

    def raises():
        with pytest.raises(AttributeError): pool.lend(store, idx[1:2]).mul_(float('nan')).foo

    for f in (dies_unseen, raises):
        f()
        assert torch.equal(pool.lend(store, idx), want)


def test_orders_of_epochs():
    assert (epoch_order(100, 0, 1)!=epoch_order(100, 1, 0)).any()


class IndexDL(StoreDL):
    def make(self, idx): return (torch.from_numpy(idx),)


def test_like_loaders():
    dl = IndexDL(toy_jets(10), [1, 3, 5, 7, 9], bs=2, shuffle=True)
    eq(len(dl.new(toy_jets(7))), 4)
    dl.epoch = 1
    eq(dl.idx[dl.get_idxs()], sum([b[0].tolist() for b in dl], []))
    eq({k: dl.settings()[k] for k in ('bs', 'shuffle', 'seed')}, dict(bs=2, shuffle=True, seed=0))


def test_fastai_tools_work_on_them(store):
    torch.manual_seed(0)
    dls = jet_dls(store, bs=64)
    net = nn.Sequential(nn.AvgPool2d(25, divisor_override=1), nn.Flatten(), nn.BatchNorm1d(75), nn.Linear(75, 2))
    learn = Learner(dls, net, CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .05)
    p, y = learn.get_preds(dl=dls.test_dl(dls.split.test))
    net.eval()
    with torch.no_grad(): close(p, net(store.images(dls.split.test)).softmax(1), 1e-4)
    eq(learn.get_preds(ds_idx=0)[1].numpy(), store.columns['y'][dls.split.train])  # unshuffled, complete
    eq(ClassificationInterpretation.from_learner(learn).confusion_matrix().sum(), 90)
    eq(learn.predict(int(dls.split.test[0]))[2].shape, (2,))
    again = copy.deepcopy(learn)
    eq(len(again.dls.train.pool.loans), 0)
    with again.no_bar(), again.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mixed precision without a GPU: fastai says so
        again.to_bf16().fit(1)
    with learn.no_bar(): found = learn.lr_find(show_plot=False, num_it=10)
    assert 0 < found.valley < 10


def test_samples_of_a_batch():
    dls = jet_dls(toy_jets(100, 'wqcd'), task='reconstruct', bs=16)
    b = dls.valid.one_batch()
    images = dls.valid.decode_batch(b, max_n=3)
    eq(len(images), 3)
    eq(images[0][0], b[0][0])
