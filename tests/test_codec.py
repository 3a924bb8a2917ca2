"The codes of chapters 02c and 02d beyond what a reader needs: limits, exact arithmetic, files of every size, errors"
import io, json, struct, sys, warnings, zlib
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from jetbook.codec.codes import (MAX_LEVEL, N_BUCKETS, Coder, ContextNet, CountedCode, Levels, PixelCode, Quantiser, bucket, code_residuals, error_summary,
    frequencies, pack_gaps, pixel_code, quantise, sparse_bytes, unpack_gaps)
from jetbook.data.hdf5 import sample
from jetbook.data.store import ConfigError, DataError, JetStore, toy_jets
from jetbook.data.loaders import split

pytest.importorskip('constriction'); pytest.importorskip('zstandard')

def same(a, b):
    "Are two sets of levels equal?"
    return all(np.array_equal(x, y) for x,y in zip(a, b))

@pytest.fixture(scope='module')
def wq(): return sample('wqcd')

@pytest.fixture(scope='module')
def few(wq): return wq.select(split(wq).valid)

# ---------------------------------------------------------------- rounding

X = np.r_[0., np.geomspace(1e-3, 300, 999)]

@pytest.mark.parametrize('q', [Quantiser(.1, 1.), Quantiser(.1, .75), Quantiser(.03, .5), Quantiser(.01, kind='log'), Quantiser(kind='float16')], ids=repr)
def test_rounding_twice_is_rounding_once(q):
    n = q.levels(X)
    assert np.array_equal(q.levels(q.values(n)), n) and q.values(n)[0]==0 and (np.diff(n) >= 0).all()

def test_half_precision_is_numpy_s():
    q = Quantiser(kind='float16')
    assert np.array_equal(q.values(q.levels(X)), X.astype(np.float16).astype(np.float32))

@pytest.mark.parametrize('args,words', [(dict(kind='cubic'), 'No such quantiser'), (dict(step=0.), 'out of range'), (dict(gamma='x'), 'out of range')])
def test_quantisers_that_are_none(args, words):
    with pytest.raises(ConfigError, match=words): Quantiser(**args)

def test_quantise_picks_the_channel_and_refuses_negative_pixels():
    q = Quantiser(.25, 1.)
    assert np.array_equal(quantise(toy_jets(5), q, 'ECAL').pixel, quantise(toy_jets(5).select(channels='ECAL'), q).pixel)
    o,p,v = toy_jets(1, 'wqcd').entries['pT']
    with pytest.raises(DataError, match='not negative'): quantise(JetStore.from_entries({'pT':(o,p,-v)}, 25, 25), q)

def test_pixels_of_a_jet_rise(few):
    lv = quantise(few, Quantiser(.25, 1.))
    assert all((np.diff(lv.pixel[a:b].astype(int)) > 0).all() for a,b in zip(lv.offsets, lv.offsets[1:]))

def test_residuals_are_those_of_the_images(few):
    q = Quantiser(.5, 1.); lv = quantise(few, q); r = code_residuals(few, lv, q)
    x = few.images(); y = JetStore.from_entries({'pT':(lv.offsets,lv.pixel,q.values(lv.level))}, 25, 25, columns=few.columns, layout='lagan').images()
    want = ((x-y).double()**2).sum((1,2,3)).numpy()/x.double().sum((1,2,3)).numpy()**2
    assert np.allclose(r['pixel'], want, rtol=0, atol=1e-9)
    e = error_summary(r, 100)
    assert e['mass_lo'] < e['mass'] < e['mass_hi'] and abs(e['mass_rms']**2-e['mass']**2-4*e['mass_bias']**2) < 1e-9
    assert abs(e['mass']-200*r['mass'].std()) < 1e-9

def test_intervals_only_where_asked_for():
    swing = np.array([.1,-.1]*50)
    e = error_summary(dict(mass=swing, pt=swing*0+.05, pixel=np.full(100,.01)), 50)
    assert e['mass_lo'] <= e['mass'] and e['pt_hi'] < 1e-9
    assert not [k for k in error_summary(dict(mass=swing, pt=swing, pixel=swing**2)) if k[-2:] in ('lo','hi')]

# ---------------------------------------------------------------- codes without learning

EMPTY = Levels(np.array([0,0,2,2]), np.array([0,624], np.uint16), np.array([1,300]))

def test_gaps_of_dark_jets(): assert same(EMPTY, unpack_gaps(pack_gaps(EMPTY), 3))

def test_gaps_that_were_cut(few):
    with pytest.raises(DataError, match='too early'): unpack_gaps(pack_gaps(quantise(few, Quantiser(.25)))[:1000], len(few))

def test_counted_code_of_dark_jets(wq):
    lv = quantise(wq, Quantiser(.25), idx=range(2000))
    c = CountedCode(lv)
    assert list(c.decode(c.encode(Levels(np.zeros(4,int), lv.pixel[:0], lv.level[:0])), 3).offsets)==[0,0,0,0]
    assert len(c.encode(lv))/2000 < sparse_bytes(lv)

def test_half_precision_is_a_fifth_of_R6_s_bytes(few):
    qcd = few.select(few.columns['signal']==0); q = Quantiser(kind='float16'); lv = quantise(qcd, q)
    assert sparse_bytes(lv, wide=True) < 800/4 and error_summary(code_residuals(qcd, lv, q))['mass'] < 5.1/50

# ---------------------------------------------------------------- exact arithmetic

def test_frequencies_are_integers_far_from_rounding():
    f = frequencies(np.floor(np.random.default_rng(0).normal(0, 3, (5,4))*256)/256)
    assert f.max() <= 2**16 and f.sum(1).max() < 2**24 and np.array_equal(f, np.rint(f))
    t = 2.**24*2.**(-np.arange(256)/256)
    assert np.abs(t%1-.5)[1:].min() > 1e-4    # no table entry near a tie: the table too is the same everywhere
    assert frequencies(np.array([[0.,-50.]])).tolist()==[[65536.,1.]]

def test_coder_reads_what_it_wrote_in_three_ways():
    s = np.random.default_rng(0).choice(4, 500, p=[.7,.2,.05,.05])
    c = Coder()
    c.code(np.tile(np.float32([14,4,1,1]), (500,1)), s); c.uniform(np.full(10,1000), np.arange(10)*99); c.alike([14,4,1,1], 500, s)
    d = Coder(c.data)
    assert np.array_equal(d.code(np.tile(np.float32([14,4,1,1]), (500,1))), s)
    assert np.array_equal(d.uniform(np.full(10,1000)), np.arange(10)*99) and np.array_equal(d.alike([14,4,1,1], 500), s)
    with pytest.raises(DataError, match='multiple of 4'): Coder(b'abc')

def test_buckets_rise_and_hold_the_largest_level():
    b,size,place = bucket(np.r_[np.arange(1,5000), MAX_LEVEL-1, MAX_LEVEL])
    assert (place < size).all() and b.max() < N_BUCKETS and (np.diff(b) >= 0).all()

def test_the_order_of_sums_does_not_matter():
    torch.manual_seed(0)
    net,other = ContextNet(9, 4, 25, 25),ContextNet(9, 4, 25, 25)
    other.load_state_dict(net.state_dict())
    order = np.random.default_rng(0).permutation(64)
    with torch.no_grad():
        for o in (other.l1.weight, other.l1.bias): o.copy_(o[order])
        for o in (other.row.weight, other.col.weight, other.l2.weight): o.copy_(o[:,order])
    x,p = np.random.default_rng(0).normal(size=(100,9)),np.arange(100)
    assert np.array_equal(net.exact()(x, p), other.exact()(x, p))

# ---------------------------------------------------------------- the learned code

def test_steps_that_a_model_serves(wq):
    m = PixelCode(25, 25, 16)
    m.count_lit(wq, np.arange(500))
    assert m.quantiser(.5)==Quantiser(.5, .85) and np.allclose(m.knots()[[0,-1]], [.01,4.]) and m.count_freqs(.25).shape==(157,)
    with pytest.raises(ConfigError, match='not trained for this step'): m.quantiser(10.)
    toy = toy_jets(50, 'wqcd')
    with pytest.raises(ConfigError, match='not trained for this step'): pixel_code(toy, split(toy), step=10.)
    with pytest.raises(ConfigError, match='one channel'): pixel_code(toy_jets(20), split(toy_jets(20)))

@pytest.mark.parametrize('gone', [('constriction',), ('zstandard',), ('constriction','zstandard')], ids=' '.join)
def test_the_recipe_warns_where_no_file_can_be_written(gone):
    toy = toy_jets(50, 'wqcd')
    with mock.patch.dict(sys.modules, dict.fromkeys(gone)), pytest.warns(UserWarning, match=f"{' and '.join(gone)} must be installed: pip install"):
        pixel_code(toy, split(toy), steps=[.001,.5], step=.01)

def test_the_recipe_is_silent_where_all_is_there():
    toy = toy_jets(50, 'wqcd')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        pixel_code(toy, split(toy), steps=[.001,.5], step=.01)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A learned code, trained on toy jets for a second: jets, run"
    from jetbook.train.runs import train
    toy = toy_jets(200, 'wqcd')
    return toy,train('pixel_code', toy, tmp_path_factory.mktemp('code')/'run', epochs=2, bs=32, steps=[.001,.5], step=.01, hidden=8, progress=False)

def test_bytes_of_training_evaluation_and_files_agree(trained):
    from jetbook.codec.files import PixelCoder
    from jetbook.train.runs import evaluate
    toy,run = trained
    found = evaluate(run, toy, part='valid')
    assert abs(found['bytes']-run.scores('valid')['bytes'].mean()) < 1e-4
    pc = PixelCoder(run.model()); jets = toy.select(run.split(toy).valid)
    assert abs(len(pc.encode(quantise(jets, pc.quantiser)))/len(jets)-found['bytes']) < .02*found['bytes']+.3

def test_jets_of_every_kind_through_the_coder(trained):
    "All lit, none, the largest level, none at all, a choice of them"
    from jetbook.codec.files import PixelCoder
    toy,run = trained
    pc = PixelCoder(run.model())
    full = Levels(np.array([0,625,625,626]), np.r_[np.arange(625),7].astype(np.uint16), np.r_[np.full(625,3),MAX_LEVEL])
    assert same(full, pc.decode(pc.encode(full), 3))
    for idx in ([], [0], [3,5]):
        lv = quantise(toy, pc.quantiser, idx=np.array(idx, int))
        assert same(lv, pc.decode(pc.encode(lv), len(idx)))
    with pytest.raises(ConfigError, match='not trained for this step'): PixelCoder(run.model(), 10.)

# ---------------------------------------------------------------- files

def test_files_of_no_jet_and_of_one(trained, tmp_path):
    from jetbook.codec.files import compress, decompress, make_codec
    toy,run = trained
    q = make_codec(run, .1).coder.quantiser
    for n in (0,1):
        jets = toy.select(np.arange(n))
        compress(run, jets, tmp_path/'n.jetz', step=.1, progress=False)
        back = decompress(tmp_path/'n.jetz', run, tmp_path/'n.jets.h5', progress=False)
        lv = quantise(jets, q)
        for s in (back, JetStore(tmp_path/'n.jets.h5')):
            assert same(s.entries['pT'], (lv.offsets, lv.pixel, q.values(lv.level))) and (s.source,s.layout)==(jets.source,jets.layout)
            assert list(s.columns)==sorted(jets.columns) and all(np.array_equal(s.columns[k], v) and s.columns[k].dtype==v.dtype for k,v in jets.columns.items())

def test_towers_keep_their_size(tmp_path):
    from jetbook.codec.files import compress, decompress, make_codec
    from jetbook.train.runs import train
    jets = toy_jets(60).select(channels='HCAL')
    run = train('pixel_code', jets, tmp_path/'towers', epochs=1, bs=32, steps=[1e-4,.1], step=.005, hidden=8, progress=False)
    assert run.model().eval()(jets.images(range(2)))[1].shape==(2,1,125,125)
    compress(run, toy_jets(9).select(channels='HCAL'), tmp_path/'t.jetz', progress=False)
    back = decompress(tmp_path/'t.jetz', run, progress=False)
    q = make_codec(run).coder.quantiser; lv = quantise(toy_jets(9), q, 'HCAL')
    assert (back.channels, back.upsample, back.height)==(('HCAL',), {'HCAL':5}, 125)
    assert same(back.entries['HCAL'], (lv.offsets, lv.pixel, q.values(lv.level)))
    from jetbook.train.runs import fingerprint
    odd = toy_jets(9).select(channels='HCAL')
    sound = fingerprint(odd)['digest']
    odd.corrections = dict(HCAL=(np.repeat([0, 1], [4, 6]), np.array([7], np.uint16), np.ones(1, np.float32)))
    assert fingerprint(odd)['digest'] != sound
    with pytest.warns(UserWarning, match='1 of 9 jets are not made of towers'):
        compress(run, odd, tmp_path/'odd.jetz', progress=False)

def test_what_is_refused_before_writing(trained, tmp_path):
    from jetbook.codec.files import LatentCoder, compress, decompress, make_codec
    from jetbook.train.runs import Run, load_bundle, save_bundle, train
    toy,run = trained
    for words,args,kwargs in (('one channel', (run,toy_jets(9)), {}), ('out of range', (run,toy), dict(block=0)), ('not trained for this step', (run,toy), dict(step=7.))):
        with pytest.raises(ConfigError, match=words): compress(*args, tmp_path/'no.jetz', progress=False, **kwargs)
    conv = train('conv_ae', toy, tmp_path/'conv', epochs=1, progress=False)
    with pytest.raises(ConfigError, match='undo its transforms'): compress(conv, toy, tmp_path/'no.jetz')
    with pytest.raises(ConfigError, match='out of range'): LatentCoder(None, 0.)
    assert not (tmp_path/'no.jetz').exists()
    with pytest.raises(DataError, match='No such file'): decompress(tmp_path/'nothing.jetz', run)
    save_bundle(*load_bundle(run.path)[::-1], tmp_path/'other')
    (tmp_path/'other/model.safetensors').unlink()
    with pytest.raises(ConfigError, match='is not trained'): make_codec(tmp_path/'other')

def test_the_digest_sees_settings_recipe_and_every_bit(trained, tmp_path):
    from jetbook.codec.files import model_digest
    from jetbook.train.runs import Run, load_bundle, save_bundle
    config,state = load_bundle(trained[1].path)
    def digest(config, state): return model_digest(Run(save_bundle(state, config, tmp_path/'other')))
    k = next(k for k,v in state.items() if v.is_floating_point())
    near = state[k].clone(); near.view(-1)[0] = near.view(-1)[0].nextafter(torch.tensor(9.))
    d = model_digest(trained[1])
    assert len(d)==64 and digest(config, state)==d
    others = [digest(config, {**state, k:near}), digest({**config, 'settings':{**config['settings'], 'step':.02}}, state), digest({**config, 'recipe':'x'}, state)]
    assert len({d, *others})==4

GOOD = dict(codec='x', config={}, recipe='x', model='x', jets=3, height=25, width=25, channels=['pT'], upsample=[1], layout='x', cell=.1, source='', columns={'y':'<f4'})

def header(text, crc=None): return io.BytesIO(struct.pack('<II', len(text), zlib.crc32(text) if crc is None else crc)+text)

@pytest.mark.parametrize('f,why', [(header(b'{}'), 'incomplete'), (header(b'nope'), 'not JSON'), (header(b'{}', 1), 'wrong checksum'), (io.BytesIO(struct.pack('<II', 2**30, 0)), 'a header of'),
    *((header(json.dumps({**GOOD, k:v}).encode()), why) for k,v,why in (('jets',-1,'impossible values'), ('upsample',[1,5],'impossible values'), ('channels',['a','a'],'impossible values'),
        ('columns',{'y':'O'},'unknown types'), ('height','25','incomplete')))], ids=lambda o: o if isinstance(o, str) else '')
def test_headers(f, why):
    from jetbook.codec.files import read_header
    with pytest.raises(DataError, match=why): read_header(f, 'x.jetz')

# ---------------------------------------------------------------- the curve

def test_points_of_the_curve(trained):
    from jetbook.codec.files import PixelCoder, curve, image_residuals, learned_points, plot_curve, savings, sparse_quantisers, unlearned_points
    import matplotlib.pyplot as plt
    toy,run = trained
    sp = split(toy); one = toy.select(sp.test); one = one.select(one.columns['signal']==0)
    assert unlearned_points(one, dict(a=[Quantiser(.01)]), n_boot=0)[0]['bytes']==sparse_bytes(quantise(one, Quantiser(.01)))
    p, = learned_points(run, one, (.01,9.), n_boot=0); q = run.model().quantiser(.01)
    assert p['bytes']==len(PixelCoder(run.model(), .01).encode(quantise(one, q)))/len(one)
    assert p['mass']==error_summary(code_residuals(one, quantise(one, q), q))['mass']
    x = one.images()
    assert np.array_equal(image_residuals(x, x, .1)['mass'], np.zeros(len(x)))
    assert np.allclose(image_residuals(x, .9*x, .1)['pixel'], (.01*(x**2).sum((1,2,3))/x.sum((1,2,3))**2).numpy(), rtol=0, atol=1e-6)
    df = curve(toy, sp.test, run, sp.train, steps=(.01,.1), n_boot=0)
    assert not df.duplicated(['code','cls','step']).any() and set(df.cls)=={'QCD','W'} and len(sparse_quantisers()['log'])==5
    s = savings(df)
    assert len(s)==4 and np.allclose(s['saved, same step'], 1-s.learned/s['sparse, same step'])
    fig = plot_curve(curve(toy, sp.test, run, sp.train, steps=(.01,.1), quick=True, n_boot=10), errors=('mass','pt','pixel'))
    assert len(fig.axes)==3
    plt.close(fig)

def test_savings_against_all_three():
    from jetbook.codec.files import savings
    point = dict(cls='QCD', step=1., mass=2., pt=1., mass_rms=2., pt_rms=1., mass_bias=0., bytes_err=1., positions=10., kind='sparse')
    s = savings(pd.DataFrame([point | o for o in (dict(kind='learned', code='l', bytes=30.), dict(code='same', bytes=60.), dict(code='finer', step=9., mass=1.9, mass_rms=1.9, bytes=40.),
        dict(code='worse', step=9., mass_rms=2.1, bytes=10.), dict(cls='W', code='of W', bytes=5.), dict(kind='counted', code='c', bytes=50.))])).iloc[0]
    assert np.allclose([s['saved, same step'], s['saved, best sparse'], s['saved on counted']], [.5,.25,.4])
