"Files of every layout become stores: what is recognised, what is refused and why, what is found"
import errno
import os
import sys
import subprocess
import warnings
import zlib
from unittest.mock import patch as mock

import h5py
import numpy as np
import pytest
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails

import jetbook.data.files as files
from jetbook.data.files import array_source, check_labels, find, from_images, h5_source, info, join_sources
from jetbook.data.files import open_source, pack, parquet_source, recognise, verify
from jetbook.data.hdf5 import sample
from jetbook.data.store import JetStore, LAYOUTS, toy_jets

def images(store): return store.images().permute(0, 2, 3, 1).contiguous().numpy()

def same_bits(a, b): np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))

def write(path, x, key='X_jets', chunks=None, **columns):
    with h5py.File(path, 'w') as f:
        f.create_dataset(key, data=x, chunks=chunks, compression='gzip' if chunks else None)
        for k, v in columns.items(): f[k] = v
    return path

@pytest.fixture(scope='module')
def jets(): return toy_jets(40)

@pytest.fixture(scope='module')
def x(jets):
    x = images(jets)
    x.flags.writeable = False
    return x

@pytest.fixture
def cms(jets, x, tmp_path): return write(tmp_path/'cms.h5', x, **{k:v.astype('f8') for k,v in jets.columns.items()})

# --- sources ----------------------------------------------------------------------------------------------------------

def test_arrays_that_are_refused(x):
    for bad, why in ((np.zeros((3, 4)), '(N, H, W, C)'), (np.zeros((0, 5, 5)), 'no jets'), (np.zeros((1, 500, 500)), '65,536'),
                     (np.full((1, 5, 5), 'a'), 'not numeric')):
        fails(lambda: array_source(bad), contains=why)
    fails(lambda: array_source(x[:4], channels=['a', 'b']), contains='2 channels')
    fails(lambda: array_source(x[:4], channels=['a', 'b', 'a']), contains='3 different')
    fails(lambda: array_source(x[:4], dict(c0=[0]*4)), contains='name of a channel')
    fails(lambda: from_images(x[:4], dict(pt=[1, 2, np.nan, 4])), contains='jet 2')

def test_hdf5_is_read_in_any_order(cms, jets, x, tmp_path):
    chunked = write(tmp_path/'chunk.h5', x, chunks=(1, 125, 125, 3), **jets.columns)
    first = write(tmp_path/'first.h5', x.transpose(0, 3, 1, 2), **jets.columns)
    for p in (cms, chunked, first):
        s = h5_source(p, 'cms')
        assert s.shape==(125, 125, 3) and s.n==40
        for lo, hi in ((3, 9), (0, 40), (39, 40), (5, 6)): same_bits(s.read(lo, hi), x[lo:hi])

def test_hdf5_that_is_refused(jets, x, tmp_path):
    for images_, columns, why in ((x, {}, "No pt in b.h5. Found: X_jets. Expected: y, pt, m0. Do: pass layout='cms'"),
                                  (x[..., :2], jets.columns, '3 channels'),
                                  (x, {**jets.columns, 'pt':np.zeros(3)}, 'pt has a wrong shape'),
                                  (x[:, 0, 0, 0], jets.columns, 'wrong shape'),
                                  (x[:0], dict(y=[], pt=[], m0=[]), 'no jets')):
        fails(lambda: h5_source(write(tmp_path/'b.h5', images_, **columns), 'cms'), contains=why)

def test_a_contiguous_file_that_shrinks(cms):
    s, late = h5_source(cms, 'cms'), h5_source(cms, 'cms')
    s.read(0, 3)
    os.truncate(cms, cms.stat().st_size//2)
    fails(lambda: s.read(0, 40), contains='has become shorter')
    fails(lambda: late.read(0, 40), contains='has changed while it was read')

def test_files_are_closed(cms, tmp_path, threads):
    "By each thread, and without a warning"
    def opened(): return sum(os.path.samefile(cms, f'/proc/self/fd/{k}') for k in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{k}'))
    src = h5_source(cms, 'cms')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        x = src.read(0, 4)
        assert opened()==1
        src.close()
        assert opened()==0 and x.any() and np.array_equal(src.read(0, 4), x)
        pack(src, tmp_path/'a.jets.h5', progress=False)
        assert opened()==0

def test_sources_joined(cms, x):
    src = h5_source(cms, 'cms')
    both = join_sources([src, src])
    for lo, hi in ((38, 43), (0, 80), (40, 41), (39, 40)): same_bits(both.read(lo, hi), np.concatenate([x, x])[lo:hi])
    eq(join_sources([src]*10).name, ' + '.join(['cms.h5']*8)+' and 2 more')
    fails(lambda: join_sources([src, array_source(x)]), contains='do not fit together')

def test_the_source_of_a_file_is_kept(jets, tmp_path):
    "`to_dense` says where jets are from, and `pack` hands it on"
    assert h5_source(jets.to_dense(tmp_path/'a.h5'), 'cms').name=='a.h5 (toy jets: random numbers)'

# --- parquet ----------------------------------------------------------------------------------------------------------

def nested(x):
    import pyarrow as pa
    a = pa.array(x.ravel())
    for s in x.shape[:0:-1]: a = pa.ListArray.from_arrays(np.arange(0, len(a)+1, s, dtype=np.int32), a)
    return a

@pytest.fixture
def e2e(jets, x, tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    columns = {k:v.astype('f8') for k,v in jets.columns.items()}
    pq.write_table(pa.table(dict(X_jets=nested(x.transpose(0, 3, 1, 2).astype('f8')), **columns)), tmp_path/'e2e.parquet', row_group_size=16)
    return tmp_path/'e2e.parquet'

def test_parquet_is_read_in_any_order(e2e, x):
    s = parquet_source(e2e)
    for lo, hi in ((0, 7), (7, 23), (30, 40), (2, 3), (3, 40)): same_bits(s.read(lo, hi).astype('f4'), x[lo:hi])

def test_parquet_decodes_each_row_once(e2e):
    s = parquet_source(e2e)
    decoded = []
    unnest = files._unnest
    with mock.object(files, '_unnest', lambda col, name: decoded.append(len(col)) or unnest(col, name)):
        for lo in range(0, 40, 3): s.read(lo, min(lo+3, 40))
    assert sum(decoded) <= 40

def test_parquet_that_is_refused(e2e, x, tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    p = tmp_path/'b.parquet'
    for table, why in ((dict(a=[1., 2.]), 'No X_jets'), (dict(X_jets=[[[[1., 2.]]], [[[1.]]]]), 'different sizes'),
                       (dict(X_jets=nested(x[:0].transpose(0, 3, 1, 2))), 'no jets')):
        pq.write_table(pa.table(table), p)
        fails(lambda: parquet_source(p), contains=why)
    p.write_bytes(e2e.read_bytes()[:-100])
    fails(lambda: parquet_source(p), contains='damaged or not a parquet file')
    fails(lambda: parquet_source(tmp_path/'gone.parquet'), contains='No such file')

def test_doubles_are_rounded_as_numpy_does():
    "In any order in memory; NaN stays NaN, and counts as the same"
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 4))
    x[0, 0, 0] = [np.nan, np.inf, -0., 1e300]
    x[1, 0, 0] = [.5, 1e-320, -np.inf, 2**24+1]
    for view in (x, x.transpose(0, 2, 3, 1), x.transpose(0, 2, 3, 1)[:, ::2]):
        with np.errstate(over='ignore'): want = view.astype('f4')
        y, rounded = files._as_float32(view)
        assert y.flags.c_contiguous and np.array_equal(y.view('u4')[~np.isnan(view)], want.view('u4')[~np.isnan(view)])
        assert np.isnan(y[np.isnan(view)]).all() and rounded==(~np.isclose(want, view, 0, 0, equal_nan=True)).sum()
        for other in ('>f8', 'f16'): eq(files._as_float32(view.astype(other))[1], rounded)

# --- threads ----------------------------------------------------------------------------------------------------------

@pytest.fixture(params=[1, 3])
def threads(request):
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(n)

def filters_left_out(path, x, columns):
    "Gzip chunks of which every third is stored as it is, without the shuffle, and without both"
    with h5py.File(path, 'w') as f:
        d = f.create_dataset('X_jets', x.shape, x.dtype, chunks=(1, *x.shape[1:]), compression='gzip', shuffle=True)
        for i, jet in enumerate(x):
            if i%3==0: d[i] = jet
            else: d.id.write_direct_chunk((i, 0, 0, 0), zlib.compress(jet.tobytes()) if i%3==1 else jet.tobytes(), i%3==1 or 3)
        for k, v in columns.items(): f[k] = v
    return path

HOW = dict(contiguous=dict(), chunks=dict(chunks=(3, 125, 125, 3)), gzip=dict(chunks=(3, 125, 125, 3), compression='gzip'),
           shuffle=dict(chunks=(3, 125, 125, 3), compression='gzip', shuffle=True), parts=dict(chunks=(7, 40, 125, 2), compression='gzip'),
           only_shuffled=dict(chunks=(9, 25, 25, 1), shuffle=True), lzf=dict(chunks=(3, 125, 125, 3), compression='lzf'),
           checked=dict(chunks=(3, 125, 125, 3), compression='gzip', fletcher32=True))

@pytest.mark.parametrize('dtype', ['f4', '>f4', 'f8', 'u2'])
@pytest.mark.parametrize('how', HOW)
def test_hdf5_is_read_as_hdf5_does(x, tmp_path, how, dtype):
    "In pieces that begin and end anywhere"
    images = (100*x).astype(dtype)
    with h5py.File(tmp_path/'a.h5', 'w') as f: f.create_dataset('X_jets', data=images, **HOW[how])
    s = h5_source(tmp_path/'a.h5', 'cms', need=False)
    assert s.in_threads==(how not in ('lzf', 'checked'))
    for lo, hi in ((0, 40), (3, 9), (8, 9), (38, 40)):
        got = s.read(lo, hi)
        assert got.dtype==images.dtype and np.array_equal(got, images[lo:hi])

def two_files(x, columns, channels):
    parts = [(x[a], {k:v[a] for k, v in columns.items()}) for a in (slice(13), slice(13, 40))]
    return join_sources([array_source(*o, channels, 'cms') for o in parts])

@pytest.mark.parametrize('how', [*HOW, 'left_out', 'array', 'two'])
def test_the_same_bytes_from_any_number_of_threads(cms, jets, x, tmp_path, how, threads, monkeypatch):
    monkeypatch.setattr(files, 'STEP_BYTES', 9*125*125*3*4)  # jets
    columns = {k:v.astype('f8') for k, v in sorted(jets.columns.items())}
    want = pack(cms, tmp_path/'want.jets.h5', progress=False).path.read_bytes()
    p = tmp_path/'other.h5'
    if how=='left_out': src = open_source(filters_left_out(p, x, columns))
    elif how=='array': src = open_source(array_source(x, columns, jets.channels, 'cms'))
    elif how=='two': src = open_source(two_files(x, columns, jets.channels))
    else:
        with h5py.File(p, 'w') as f:
            f.create_dataset('X_jets', data=x, **HOW[how])
            for k, v in columns.items(): f[k] = v
        src = open_source(p)
    assert src.in_threads==(how not in ('lzf', 'checked'))
    src.name = 'cms.h5'  # it is part of the store
    assert pack(src, tmp_path/'got.jets.h5', progress=False).path.read_bytes()==want

@pytest.mark.parametrize('rows', [1, 7, 100])
def test_parquet_in_threads(e2e, x, tmp_path, rows, threads, monkeypatch):
    import pyarrow as pa, pyarrow.parquet as pq
    monkeypatch.setattr(files, 'STEP_BYTES', 9*125*125*3*4)  # jets
    pq.write_table(pa.concat_tables([pq.read_table(e2e)]*3).combine_chunks(), p := tmp_path/'a.parquet', row_group_size=rows)
    assert open_source(p).in_threads==(rows < 100)
    s = pack(p, tmp_path/'a.jets.h5', progress=False)
    same_bits(images(s), np.concatenate([x]*3))
    eq(list(s.upsample.values()), [1, 1, 5])

@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('damage', ['bits', 'cut', 'longer', 'by one', 'shorter'])
def test_a_damaged_chunk(x, tmp_path, shuffle, damage, threads):
    p, dest = tmp_path/'a.h5', tmp_path/'a.jets.h5'
    with h5py.File(p, 'w') as f:
        d = f.create_dataset('X_jets', data=x, chunks=(2, 125, 125, 3), compression='gzip', shuffle=shuffle)
        stored = d.id.get_chunk_info(7)
        good = d.id.read_direct_chunk(stored.chunk_offset)[1]
        if damage in ('longer', 'by one', 'shorter'):
            bad = {'longer':bytes(2**20), 'by one':b'1'}.get(damage, b'')
            d.id.write_direct_chunk(stored.chunk_offset, zlib.compress(zlib.decompress(good)[:None if bad else -4] + bad))
        if damage=='cut': d.id.write_direct_chunk(stored.chunk_offset, good[:-3])
    if damage=='bits':
        with open(p, 'r+b') as f:
            f.seek(stored.byte_offset+stored.size//2)
            f.write(bytes(b ^ 255 for b in good[stored.size//2:][:8]))
    src = open_source(p, label=False, layout='cms')
    fails(lambda: pack(src, dest, progress=False), contains='a.h5 is damaged')
    assert not dest.exists() and not dest.with_name(dest.name+'.part').exists()

# --- which layout -----------------------------------------------------------------------------------------------------

def test_layouts_that_are_not_known(cms, jets, x, tmp_path):
    fails(lambda: open_source(write(tmp_path/'other.h5', x, 'pictures')), contains='no layout jetbook knows')
    fails(lambda: open_source(tmp_path/'gone.h5'), contains='No such file')
    fails(lambda: open_source(cms, layout='CMS'), contains='No such layout')
    fails(lambda: open_source([]), contains='No files')
    fails(lambda: open_source(jets.save(tmp_path/'p.jets.h5')), contains='packed already')
    with h5py.File(tmp_path/'ln.h5', 'w') as f: f['X_jets'] = h5py.ExternalLink(str(cms), 'X_jets')
    fails(lambda: open_source(tmp_path/'ln.h5'), contains='is a link')

def test_layouts_that_are_recognised(x, tmp_path):
    w = toy_jets(10, 'wqcd').images()[:, 0].numpy()
    eq(recognise(write(tmp_path/'l.h5', w, 'image', jet_pt=np.ones(10))), 'lagan')
    eq(recognise(write(tmp_path/'e.h5', x[:4], 'X', y=np.zeros(4))), 'egamma')

def test_jets_without_labels(jets, x, tmp_path):
    test = write(tmp_path/'test.h5', x, **{k:jets.columns[k] for k in ('pt', 'm0')})
    o = open_source(test)
    eq((o.layout, o.channels, list(o.columns)), ('cms', jets.channels, ['m0', 'pt']))
    s = pack(test, tmp_path/'test.jets.h5', progress=False)
    eq((s.layout, s.channels, s.label_column, sorted(s.columns)), ('cms', jets.channels, None, ['m0', 'pt']))
    fails(lambda: open_source(test, label='is_quark'), contains='Found: m0, pt')
    fails(lambda: pack(test, tmp_path/'t.jets.h5', label='pt', progress=False), contains='other than 0 and 1')

def test_a_label_of_another_name(cms, jets, x, tmp_path):
    bare = write(tmp_path/'bare.h5', x, mine=jets.columns['y'].astype('f8'))
    fails(lambda: open_source(bare), contains="pass layout='cms' to go without")
    eq(list(open_source(bare, 'cms').columns), ['mine'])
    for s, lay, kw in ((bare, 'cms', {}), (x, None, dict(columns=dict(mine=jets.columns['y'])))):
        o = open_source(s, lay, label='mine', **kw)
        eq(list(o.columns), ['y'])
        np.testing.assert_array_equal(o.columns['y'], jets.columns['y'])
        eq(o.columns['y'].dtype, np.uint8)
    s = pack(bare, tmp_path/'mine.jets.h5', 'cms', label='mine', progress=False)
    eq(s.label_column, 'y')
    eq(verify(s, bare, layout='cms', label='mine', progress=False)['identical'], True)
    fails(lambda: open_source(cms, label='pt'), contains='two labels')
    eq(list(open_source(cms, label='y').columns), list(open_source(cms).columns))

def test_a_folder_is_one_source(tmp_path):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((6, 32, 32, 2)) < .05, rng.normal(size=(6, 32, 32, 2)), 0).astype('f4')
    x[..., 0] = abs(x[..., 0])
    (tmp_path/'egamma').mkdir()
    for k in (0, 1): write(tmp_path/'egamma'/f'class{k}.hdf5', x, 'X', y=np.full(6, k, 'f4'))
    eq(open_source(tmp_path/'egamma').n, 12)
    s = pack(tmp_path/'egamma', tmp_path/'e.jets.h5', progress=False)
    same_bits(images(s), np.concatenate([x, x]))    # hit times are negative too
    eq(info(tmp_path/'egamma')['jets'], 12)

# --- labels -----------------------------------------------------------------------------------------------------------

def test_labels():
    qg = sample('qg')
    eq(check_labels(qg)['verdict'], 'y=1 is quark')
    turned = qg._replace(columns=dict(y=1-qg.columns['y']))
    eq(check_labels(turned, warn=False)['verdict'], 'y=1 looks like gluon')
    with pytest.warns(UserWarning, match='is y=1 gluon in this file'): check_labels(turned)
    for other in (toy_jets(10, 'wqcd'), qg._replace(columns={}), qg._replace(columns=dict(y=0*qg.columns['y']))): eq(check_labels(other), None)

# --- packing ----------------------------------------------------------------------------------------------------------

def test_an_odd_jet_costs_the_others_nothing(x, tmp_path):
    odd = x.copy()
    odd[33, 10, 10, 2] += 1
    sound = pack(x, tmp_path/'sound.jets.h5', progress=False)
    s = pack(odd, tmp_path/'odd.jets.h5', progress=False)
    eq(s.upsample, sound.upsample)
    eq(np.flatnonzero(np.diff(s.corrections['c2'][0])), [33])
    same_bits(images(s), odd)
    others = np.delete(np.arange(len(x)), 33)
    for mine, theirs in zip(s[others].entries['c2'], sound[others].entries['c2']): eq(mine, theirs)
    assert not s[others].corrections and not sound.corrections
    assert s.nbytes - sound.nbytes <= 8*41 + 6*26
    eq(abs(s.clouds([33]).value.sum() - sound.clouds([33]).value.sum() - 1/25) < 1e-5, True)
    with h5py.File(tmp_path/'sound.jets.h5') as f: eq(f.attrs['version'], 1)
    with h5py.File(tmp_path/'odd.jets.h5') as f: eq(f.attrs['version'], 2)  # older readers refuse it
    eq(verify(tmp_path/'odd.jets.h5', odd, progress=False)['checksums'], 9+3)
    assert '1 jets corrected' in repr(s) and s.summary().corrections_per_jet['c2'] > 0

def test_towers_that_end(x, tmp_path):
    late = x.copy()
    late[:, ::2, ::2, 2] += 1
    big = np.concatenate([x]*10+[late]) # in a later chunk
    s = pack(big, tmp_path/'late2.jets.h5', progress=False)
    eq(s.upsample['c2'], 1)
    assert not s.corrections
    same_bits(images(s), big)

@pytest.mark.parametrize('bad,word', [(np.nan, 'not a number'), (np.inf, 'infinite'), (-1, 'negative')])
def test_pixels_that_are_refused(x, tmp_path, bad, word):
    y = x.copy()
    y[17, 3, 4, 1] = bad
    for text in (word, 'jet 17'): fails(lambda: pack(y, tmp_path/'bad.jets.h5', progress=False), contains=text)
    assert not list(tmp_path.iterdir())

def test_negative_pixels(x, tmp_path):
    y = x.copy()
    y[17, 3, 4, 1] = -1
    eq(pack(y, tmp_path/'keep.jets.h5', negative='keep', progress=False).images([17])[0, 1, 3, 4].item(), -1.)
    eq(pack(y, tmp_path/'zero.jets.h5', negative='zero', progress=False).images([17])[0, 1, 3, 4].item(), 0.)
    fails(lambda: pack(x, tmp_path/'keep.jets.h5', progress=False), contains='already exists')
    fails(lambda: pack(x, tmp_path/'q.jets.h5', negative='drop', progress=False), contains="'raise'")

def test_labels_that_are_refused(x, tmp_path):
    bad = write(tmp_path/'b.h5', x, y=np.arange(40), pt=np.ones(40), m0=np.ones(40))
    fails(lambda: pack(bad, tmp_path/'q.jets.h5', progress=False), contains='other than 0 and 1')
    assert not (tmp_path/'q.jets.h5').exists()

def test_rounding(tmp_path, capsys):
    assert np.signbit(images(from_images(-np.zeros((1, 5, 5, 1), 'f4')))).all() # minus zero
    s = pack(np.full((2, 5, 5, 1), 1/3), tmp_path/'f8.jets.h5')
    eq(s.images()[0, 0, 0, 0].item(), float(np.float32(1/3)))
    assert '50 values of the source do not fit float32' in capsys.readouterr().out
    fails(lambda: pack(np.full((1, 5, 5), 1e5), tmp_path/'h.jets.h5', value_dtype='float16', progress=False), contains='too large for float16')

def test_nothing_is_left_without_room(cms, tmp_path):
    dest = tmp_path/'full.jets.h5'
    with mock.object(files._Spool, 'append', side_effect=OSError(errno.ENOSPC, 'No space left on device')):
        fails(lambda: pack(cms, dest, progress=False), contains='free space')
    assert not dest.exists()
    eq(len(pack(cms, dest, progress=False)), 40)
    assert not list(tmp_path.glob('*.part'))

# --- info, verify, back to dense --------------------------------------------------------------------------------------

def test_info_of_all_kinds(cms, e2e, x, tmp_path):
    s = pack(cms, tmp_path/'cms.jets.h5', progress=False)
    eq(info(cms)['jets'], 40)
    eq(info(cms, n=5)['read'], 5)
    for packed in (s, s.path, str(s.path)):
        i = info(packed)
        eq(i['layout'], 'jetbook store')
        close(i['lit_fraction'], (x!=0).mean(), 1e-9)
        close(i['compression'], x.nbytes/s.nbytes, 1e-9)
    eq(info(e2e)['channels'].loc['HCAL', 'upsample'], 5)

def test_verify_finds_what_differs(cms, jets, x, tmp_path):
    s = pack(cms, tmp_path/'cms.jets.h5', progress=False)
    for store in (s, s.path):
        eq(verify(store), dict(jets=40, checksums=12, compared=0, identical=None))
        eq(verify(store, cms, progress=False), dict(jets=40, checksums=12, compared=40, identical=True))
    other = x.copy()
    other[21, 60, 60, 0] += 1
    fails(lambda: verify(s, write(tmp_path/'o.h5', other, **jets.columns), progress=False), contains='jet 21')
    fails(lambda: verify(s, write(tmp_path/'o.h5', x, **{**jets.columns, 'pt':np.ones(40)}), progress=False), contains='pt')
    w = write(tmp_path/'w.h5', np.zeros((10, 25, 25)), 'image', signal=np.zeros(10), **{k:np.ones(10) for k in LAYOUTS['lagan'].columns[1:]})
    fails(lambda: verify(s, w, progress=False), contains='another source')

def test_dense_lagan_file(tmp_path):
    wqcd = sample('wqcd')
    p = wqcd.to_dense(tmp_path/'w.h5', idx=range(50), chunks=(10, 25, 25), compression='gzip')
    same_bits(images(pack(p, tmp_path/'w.jets.h5', progress=False)), images(wqcd.select(range(50))))

# --- the sample, and what is found instead ----------------------------------------------------------------------------

def test_samples():
    fails(lambda: sample('top'), contains='dark or egamma or qg or tau or wqcd')
    for name, n in dict(qg=20_000, wqcd=16_000, tau=4_000, egamma=8_000, dark=4_000).items():
        s = sample(name)
        assert len(s) == 2*s.columns[s.label_column].sum() == n and 'simulated with Pythia 8' in s.source
    assert set(LAYOUTS['lagan'].columns) <= set(s.columns)
    qg = sample('qg')
    assert 4*46875*len(qg)/qg.nbytes > 75  # smaller than dense

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "As on Kaggle: data sets below `input`, work in the current folder"
    (tmp_path/'input'/'a-data-set').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_find_without_a_file(folder): eq(len(find('nowhere')), len(sample('qg')))

def test_find(folder, monkeypatch):
    jets = toy_jets(12)
    jets.to_dense('input/a-data-set/jets.hdf5')
    for s in (find('input', progress=False), find('input')): same_bits(images(s), images(jets))
    eq([p.name for p in folder.glob('*.h5')], ['jets.jets.h5'])
    (folder/'input'/'broken.jets.h5').write_bytes(b'no HDF5')
    (folder/'input'/'other.h5').touch()
    eq(len(find('input')), 12)                      # files that hold no jets are passed by
    toy_jets(5).save('input/few.jets.h5')
    eq(len(find('input')), 12)                      # a small store does not hide a larger file
    (folder/'jets.jets.h5').unlink()
    monkeypatch.setenv('JETBOOK_DATA', str(folder/'input'))
    eq(len(find(progress=False)), 12)

# --- start-up ---------------------------------------------------------------------------------------------------------

HEAVY = ('torch', 'fastai', 'numba', 'pandas', 'pyarrow', 'matplotlib')

def imported(code):
    "Which of `HEAVY` a fresh process has imported after `code`"
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'{code}\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])'],
                       capture_output=True, text=True, check=True)
    return set(r.stdout.split('\n')[-2].split())

def test_imports_nothing_heavy(): eq(imported('import jetbook.data.store, jetbook.data.hdf5, jetbook.data.files'), set())

def test_looking_into_a_store_compiles_nothing(store_file):
    code = f'from jetbook.data.files import info, verify; info({str(store_file)!r}); verify({str(store_file)!r})'
    assert imported(code) <= {'pandas', 'pyarrow'}  # `info` makes a table; pandas may look for pyarrow

def test_packing_needs_no_torch(cms):
    code = f"""from jetbook.data.files import pack, verify
s = pack({str(cms)!r}, {str(cms.with_name('a.jets.h5'))!r}, progress=False)
assert verify(s, {str(cms)!r}, progress=False)['identical']
s.to_dense({str(cms.with_name('b.h5'))!r})"""
    assert imported(code) <= {'numba', 'pyarrow'}   # numba imports the extensions of other packages: awkward's imports pyarrow
