"""Splits and loaders: requests that cannot be met, lent memory, fastai's own tools."""
import base64, copy, json, warnings, zlib
import numpy as np, pytest, torch
import fastai.callback.all  # lr_find and mixed precision, patched onto Learner
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails
from torch import nn
from jetbook.data.loaders import BatchPool, JetDL, Split, StoreDL, as_split, epoch_order, jet_dls, own_split, split, split_files
from jetbook.data.store import JetbookError, join, toy_jets


@pytest.fixture(scope='module')
def store(): return toy_jets(600)


def test_splits_that_cannot_be_made(store):
    fails(lambda: split(store, valid=1.5), contains='between 0 and 1')
    fails(lambda: split(store, valid=.5, test=.5), contains='No jets are left')
    fails(lambda: split(toy_jets(6)), contains='Too few jets')
    fails(lambda: split(store, by='flavour'), contains='No column to stratify by')


@pytest.mark.parametrize('test', [0, 0.15])
def test_groups_stay_together(store, test):
    "Events, and runs of events, also when they are of very different sizes"
    rng = np.random.default_rng(0)
    run, event = rng.integers(0, 3, 600), rng.integers(0, 60, 600)
    s = store._replace(columns={**store.columns, 'run': run, 'event': event})
    parts = split(s, groups=['run', 'event'], test=test)
    groups = [set(zip(run[i], event[i])) for i in (parts.train, parts.valid, parts.test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    eq(np.sort(np.concatenate([parts.train, parts.valid, parts.test])), np.arange(600))
    assert 85 <= len(parts.valid) <= 110 and (85 <= len(parts.test) <= 110 if test else len(parts.test) == 0)
    again = Split.from_dict(s, json.loads(json.dumps(parts.to_dict())))
    eq((again.digest, again.groups), (parts.digest, ('run', 'event')))
    assert set(split(s, groups='event', n_train=50).train) < set(split(s, groups='event').train)
    fails(lambda: split(s, groups='evnt'), contains='No column to group by')
    fails(lambda: split(s, groups='run', valid=0.5), contains='Too few groups')


def test_no_test_part(store):
    s = split(store, test=0)
    eq((len(s.train), len(s.valid), len(s.test)), (510, 90, 0))
    eq(Split.from_dict(store, s.to_dict()).digest, s.digest)
    for wrong in (-0.1, 1, True, '0.1', float('nan')):
        fails(lambda: split(store, test=wrong), contains='The test fraction is out of range')
    fails(lambda: split(store, valid=0), contains='The valid fraction is out of range')


def test_parts_of_ones_own(store):
    mask = np.arange(600) < 100
    for parts in ((mask, slice(100, 200)), dict(train=range(100), valid=range(199, 99, -1)), own_split(store, mask, range(100, 200))):
        s = as_split(store, parts)
        eq((s.train, s.valid, len(s.test), s.own), (np.arange(100), np.arange(100, 200), 0, True))
        dls = jet_dls(store, parts, bs=50)
        eq(torch.cat([y for _, y in dls.valid]).numpy(), store.columns['y'][100:200])
        again = Split.from_dict(store, json.loads(json.dumps(s.to_dict())))
        eq((again.digest, again.own, again.fractions), (s.digest, True, s.fractions))
    assert 'given' in repr(s) and len(json.dumps(s.to_dict())) < 400
    for wrong, why in (
        (([0, 1], [1, 2]), 'jet 1'), (([0, 0], [1]), 'jet 0'), (([], [1]), 'part to train is empty'), (([0], [600]), '0 to 599'),
        ((1, 2, 3, 4), 'Not a split'), ('y', 'Not a split'), (dict(train=[0]), 'Not a split'), (split(toy_jets(100)), 'of another store')):
        fails(lambda: as_split(store, wrong), contains=why)


def test_a_file_for_each_part(store):
    both, s = split_files(store[:300], store[300:400], store[400:])
    eq((s.train[-1], s.valid[0], s.test[-1], len(both)), (299, 300, 599, 600))
    eq(both.images([350]), store.images([350]))
    eq(both.columns['pt'], store.columns['pt'])
    eq((both.cell, both.layout, both.source), (store.cell, store.layout, store.source))
    less = store[:5]._replace(columns=dict(y=store.columns['y'][:5]))
    eq(list(join([store, less]).columns), ['y'])
    for other, what in ((toy_jets(5, 'wqcd'), 'height'), (store.select(channels=['ECAL']), 'channels')):
        fails(lambda: split_files(store, other), contains=f'Stores of different {what} cannot be joined')


@pytest.mark.parametrize('own', ['', 'x', 'AAAA', None, 7, base64.b64encode(zlib.compress(bytes(10**7))).decode(),
    base64.b64encode(zlib.compress(bytes(599))).decode(), base64.b64encode(zlib.compress(bytes(600))).decode()])
def test_parts_that_a_stranger_wrote(store, own):
    d = {**own_split(store, [0], [1]).to_dict(), 'own': own}
    with pytest.raises(JetbookError):
        Split.from_dict(store, d)


def test_the_same_jets_twice(store):
    "As if a file had been packed twice"
    twice = join([store[:100], store[:100]])
    eq(twice.twins(), np.tile(np.arange(100), 2))
    with pytest.warns(UserWarning, match='(?s)of 30 (valid|test) jets are in the training part too.*packed twice'):
        s = split(twice)
    with pytest.warns(UserWarning, match='100 of 100 valid jets'):
        own_split(twice, range(100), range(100, 200))
    once = twice.select(np.unique(twice.twins()))
    eq(len(once), 100)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        split(once)
        split(store)
        Split.from_dict(twice, s.to_dict())  # said when it was made
    dark = toy_jets(4)
    eq(join([dark, dark.select([1, 1])]).twins(), [0, 1, 2, 3, 1, 1])


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


@pytest.fixture(scope='module')
def learn(store):
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(25, divisor_override=1), nn.Flatten(), nn.BatchNorm1d(75), nn.Linear(75, 2))
    learn = Learner(jet_dls(store, bs=64), net, CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.05)
    return learn


def test_predictions_of_single_jets(learn, store):
    "By index, as a store gives a jet, or as an image of one's own"
    i = int(learn.dls.split.test[0])
    name, index, p = learn.predict(i)
    assert name in ('gluon', 'quark') and name == learn.dls.vocab[int(index)] and p.argmax() == index
    x = store.images([i])[0]
    own = store[i]['image']
    for item in (own, own.numpy(), store[i], x.permute(1, 2, 0), own.double(), np.int64(i)):
        eq(learn.predict(item)[2], p)
    p2 = learn.get_preds(dl=learn.dls.test_dl([own, own]))[0]
    close(p2[1], p, 1e-6)
    fails(lambda: learn.predict(torch.zeros(3, 25, 25)), contains='(3, 125, 125): Tracks, ECAL, HCAL')
    fails(lambda: learn.predict(torch.full((3, 125, 125), float('nan'))), contains='not finite')
    fails(lambda: learn.predict(600), contains='No jet of that index')


def test_interpretation(learn, store):
    import matplotlib.pyplot as plt

    interp = ClassificationInterpretation.from_learner(learn)
    eq(interp.confusion_matrix().shape, (2, 2))
    interp.plot_top_losses(3)
    titles = [a.get_title() for a in plt.gcf().axes]
    assert any(t.startswith(('gluon\nsays quark, loss', 'quark\nsays gluon, loss')) for t in titles)
    interp.plot_confusion_matrix()
    eq([o.get_text() for o in plt.gca().get_xticklabels()], ['gluon', 'quark'])
    interp.print_classification_report()
    losses, i = interp.top_losses(3)
    eq(interp[i][1].shape, (3, 2))
    plt.close('all')


def test_export(learn, store, tmp_path):
    "What fastai's `export` writes predicts the same, and holds no jets"
    learn.path = tmp_path
    learn.export()
    assert (tmp_path / 'export.pkl').stat().st_size < 200_000
    again = torch.load(tmp_path / 'export.pkl', weights_only=False)
    eq(len(again.dls.valid_ds), 0)
    eq(again.predict(store[3]['image'])[2], learn.predict(3)[2])
    eq(len(learn.dls.valid_ds), 600)


def test_vision_learner(store):
    from fastai.data.core import Transform
    from fastai.vision.all import Normalize, resnet18, vision_learner

    dls = jet_dls(store.select(np.arange(40)), bs=8)
    eq((dls.c, dls.train.c, list(dls.vocab)), (2, 2, ['gluon', 'quark']))
    learn = vision_learner(dls, resnet18, pretrained=False, loss_func=CrossEntropyLossFlat())
    eq(learn.model(torch.zeros(2, 3, 125, 125)).shape, (2, 2))
    assert learn.predict(3)[0] in ('gluon', 'quark')

    class Double(Transform):
        def encodes(self, x: torch.Tensor):
            return 2 * x if x.ndim == 4 else x

    dls.add_tfms([Normalize.from_stats([0.5] * 3, [0.5] * 3), Double()], 'after_batch')  # as it does if pretrained
    eq(dls.valid.one_batch()[0], 2 * store.images(dls.split.valid[:8]))
    eq(dls.test_dl([1]).one_batch()[0], 2 * store.images([1]))
