"Files as people have them: channels first, labels of any kind, one class a file, bad jets, names that say nothing"
import os
import resource
import shutil
import warnings

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jetbook.data.files as files
from conftest import quiet
from jetbook.cli import main
from jetbook.data.files import as_labels, channel_axis, from_images, info, open_source, pack, verify
from jetbook.data.store import DataError, JetbookError, toy_jets


def images(n, h, w, c, seed=0):
    "Sparse images (n, h, w, c), float32"
    rng = np.random.default_rng(seed)
    return (rng.random((n, h, w, c))*(rng.random((n, h, w, c)) < .03)).astype('f4')


X, Y = images(40, 25, 25, 3), np.arange(40) % 2
COLS = dict(pt=np.full(40, 100, 'f4'), m0=np.full(40, 20, 'f4'))


def h5(path, **data):
    with h5py.File(path, 'w') as f:
        for k, v in data.items(): f[k] = v
    return path


def parquet(path, label, **more):
    "A parquet file with `label` as its column y"
    label = label if isinstance(label, (pa.Array, pa.ChunkedArray)) else pa.array(label)
    pq.write_table(pa.table(dict(X_jets=X.transpose(0, 3, 1, 2).tolist(), **COLS, y=label, **more)), path)
    return path


def said(fn, *args, **kwargs):
    "What a call returns, and its warnings"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        res = fn(*args, **kwargs)
    return res, [str(o.message) for o in w if o.category is UserWarning]


def refused(text, fn, *args, exc=DataError, **kwargs):
    with pytest.raises(exc) as e: fn(*args, **kwargs)
    assert text in str(e.value), e.value
    return e.value


@pytest.fixture
def out(tmp_path): return tmp_path/'out.jets.h5'


# --- channels first ---------------------------------------------------------------------------------------------------

def test_channels_first_arrays(out):
    "Whatever the order, the same store; what `images` gives can be packed again"
    want = from_images(X, dict(y=Y))
    for x, n in ((X.transpose(0, 3, 1, 2), 3), (want.images(), 3), (X[..., :1].transpose(0, 3, 1, 2), 1)):
        s = from_images(x, dict(y=Y))
        assert (len(s), s.height, s.width, len(s.channels))==(40, 25, 25, n)
        assert np.array_equal(s.images(), want.images()[:, :n])
    assert from_images(X[..., 0]).images().shape==(40, 1, 25, 25)


@pytest.mark.parametrize('shape', [(3, 25, 3), (25, 25, 30), (8, 8, 8), (30, 25, 25)])
def test_shapes_that_do_not_tell(shape):
    x = np.zeros((2, *shape), 'f4')
    for fn in (from_images, open_source): refused('pass channels_first=True or channels_first=False', fn, x)
    first, last = (from_images(x, channels_first=c) for c in (True, False))
    assert (len(first.channels), len(last.channels))==(shape[0], shape[2])


def test_names_and_layout_decide():
    x = np.zeros((2, 5, 25, 3), 'f4')
    assert len(from_images(x, channels=list('abcde')).channels)==5
    assert from_images(x, layout='cms').channels==('Tracks', 'ECAL', 'HCAL')
    refused('2 channels, last or first', from_images, x, channels=['a', 'b'])
    refused('wrong shape', from_images, X[..., 0], channels_first=True)
    refused('No such layout', from_images, X, layout='CMS', exc=JetbookError)
    assert channel_axis((25, 25))=='none'


def test_channels_first_files(tmp_path, out):
    p = h5(tmp_path/'a.h5', X_jets=X.transpose(0, 3, 1, 2), y=Y, **COLS)
    assert np.array_equal(quiet(p, out).images(), X.transpose(0, 3, 1, 2))
    p = h5(tmp_path/'b.h5', X_jets=np.zeros((4, 3, 25, 3), 'f4'), **{k: v[:4] for k, v in dict(y=Y, **COLS).items()})
    refused('channels_first', open_source, p)
    assert open_source(p, channels_first=True).shape==(25, 3, 3)


# --- keywords ---------------------------------------------------------------------------------------------------------

def test_keywords_are_not_swallowed(tmp_path, out):
    p = h5(tmp_path/'a.h5', X_jets=X, y=Y, **COLS)
    for fn in (lambda **k: pack(p, out, **k), lambda **k: from_images(X, **k), lambda **k: verify(out, p, **k)):
        refused('has no parameter overwite', fn, overwite=True, exc=TypeError)
    assert 'did you mean overwrite' in str(refused('overwite', pack, p, out, overwite=True, exc=TypeError))
    assert 'did you mean label' in str(refused('lable', open_source, p, lable='y', exc=TypeError))
    refused("columns can't be given for a file", pack, p, out, columns=dict(y=Y), exc=JetbookError)
    refused("image can't be given for an array", pack, X, out, image='X', exc=JetbookError)
    refused("layout can't be given for a Source", open_source, open_source(p), 'cms', exc=JetbookError)
    assert not out.exists()


@pytest.mark.parametrize('kwargs', [dict(bad='maybe'), dict(negative='drop'), dict(towers=0), dict(towers=2.5), dict(value_dtype='float8')])
def test_choices_that_do_not_exist(out, kwargs):
    refused('No such', pack, X, out, exc=JetbookError, **kwargs)
    assert not list(out.parent.iterdir())


# --- labels -----------------------------------------------------------------------------------------------------------

TEXT = np.where(Y, 'quark', 'gluon')
LABELS = dict(bool=Y.astype(bool), text=TEXT, one_hot=np.eye(2)[Y].tolist(), list_of_one=[[int(v)] for v in Y], float=Y.astype(float),
              category=pa.array(TEXT.tolist()).dictionary_encode(), decimal=pa.array(Y.tolist()).cast(pa.decimal128(21, 1)),
              digits=Y.astype(str), true=np.where(Y, 'True', 'False'), large=pa.array(TEXT.tolist(), pa.large_string()))


@pytest.mark.parametrize('kind', list(LABELS))
def test_labels_of_parquet(tmp_path, out, kind):
    label = LABELS[kind]
    p = parquet(tmp_path/'a.parquet', label if isinstance(label, pa.Array) else list(label))
    s, w = said(pack, p, out, progress=False)
    assert s.label_column=='y' and np.array_equal(s.columns['y'], Y) and s.columns['y'].dtype==np.uint8 and not w
    assert verify(out, p, progress=False)['identical']


@pytest.mark.parametrize('kind', ['text', 'text of one', 'one_hot', 'bool', 'column'])
@pytest.mark.parametrize('key', ['y', 'kind'])
def test_labels_of_hdf5(tmp_path, out, kind, key):
    label = dict(text=TEXT.astype('S'), one_hot=np.eye(2)[Y], bool=Y.astype(bool), column=Y[:, None])
    label['text of one'] = TEXT.astype('S')[:, None]
    p = h5(tmp_path/'a.h5', X_jets=X, **COLS, **{key: label[kind]})
    s = quiet(p, out, label=key)
    assert s.label_column=='y' and np.array_equal(s.columns['y'], Y) and key in ('y', *s.columns) or key not in s.columns
    assert verify(out, p, label=key, progress=False)['identical']


def test_a_mapping_is_said(tmp_path, out, capsys):
    pack(parquet(tmp_path/'a.parquet', np.where(Y, 'W', 'QCD').tolist()), out)
    assert 'y: 1 is W, 0 is QCD' in capsys.readouterr().out
    assert said(pack, tmp_path/'a.parquet', out, overwrite=True, progress=False)[1]==['y: 1 is W, 0 is QCD, by the alphabet']
    quiet(tmp_path/'a.parquet', out, label='y=QCD')
    assert np.array_equal(quiet(tmp_path/'a.parquet', out, label='y=QCD').columns['y'], 1-Y)


@pytest.mark.parametrize('label,text', [([-1, 1], 'pass label="y=1"'), ([1, 2], 'pass label="y=2" to make 2 class 1'), ([0, 5], 'y=5')])
def test_odd_numbers_are_not_guessed(tmp_path, out, label, text, capsys):
    p = h5(tmp_path/'a.h5', X_jets=X, **COLS, y=np.array(label)[Y])
    refused(text, pack, p, out, progress=False)
    assert np.array_equal(quiet(p, out, label=f'y={label[1]}').columns['y'], Y)
    assert main(['pack', str(p), '-o', str(out.with_name('b.jets.h5')), '-q'])==1 and '--label y=' in capsys.readouterr().err
    assert text in str(info(p)['notes'])


def test_labels_that_cannot_be_taken(tmp_path, out):
    three = np.array(['a', 'b', 'c'])[np.arange(40) % 3]
    refused('does not tell two classes', pack, parquet(tmp_path/'a.parquet', three.tolist()), out, progress=False)
    s = quiet(tmp_path/'a.parquet', out, label='y=b')
    assert np.array_equal(s.columns['y'], three=='b')
    refused('No jet has y=d', pack, tmp_path/'a.parquet', tmp_path/'b.jets.h5', label='y=d', progress=False)
    with h5py.File(h5(tmp_path/'b.h5', X_jets=X, **COLS), 'r+') as f: f.create_dataset('y', data=TEXT.tolist())  # of variable length
    refused('text of variable length', pack, tmp_path/'b.h5', tmp_path/'b.jets.h5', progress=False)
    refused('wrong shape', as_labels, 'y', np.eye(3))
    refused('holds numbers', as_labels, 'y', Y, 'quark')


def test_labels_that_are_missing(tmp_path, out):
    "Without a label a jet is of no class, and never of class 0"
    label = [None if i in (3, 8) else 'quark' if i % 2 else 'gluon' for i in range(40)]
    p = parquet(tmp_path/'a.parquet', label)
    refused('Labels in column y', pack, p, out, progress=False)
    s, w = said(pack, p, out, bad='drop', progress=False)
    assert np.array_equal(s.columns['y'], np.delete(Y, [3, 8])) and '2 of 40 jets' in w[0]
    assert np.isnan(as_labels('y', np.array([1, np.nan, -1]), '1')[0][1])


def test_no_label_is_said(tmp_path, out, capsys):
    "Always, and with the columns that may be one"
    p = h5(tmp_path/'a.h5', X_jets=X, **COLS, jet_type=TEXT.astype('S'))
    w = said(pack, p, out, progress=False)[1]
    assert 'no y: packed without labels; jet_type may be one' in w[0] and 'left out: jet_type' in w[1]
    assert main(['pack', str(p), '-o', str(out), '-q', '--overwrite'])==0
    assert 'packed without labels' in capsys.readouterr().err
    assert said(quiet, X, out)[1]==[]


def test_one_class_is_said(tmp_path, out):
    p = h5(tmp_path/'a.h5', X_jets=X, **COLS, y=np.ones(40))
    assert said(pack, p, out, progress=False)[1]==['all jets have y=1: there is only one class']


# --- one class a file -------------------------------------------------------------------------------------------------

@pytest.fixture
def two(tmp_path):
    return [h5(tmp_path/f'{k}.h5', X_jets=X[i::2], pt=COLS['pt'][i::2], m0=COLS['m0'][i::2]) for i, k in enumerate(('signal', 'background'))]


def test_class_of_a_file(two, tmp_path, out, capsys):
    sig, bkg = two
    want = np.repeat([1, 0], 20)
    for source in ({sig: 1, bkg: 0}, [f'{sig}:1', f'{bkg}:0']):
        s = quiet(source, out)
        assert np.array_equal(s.columns['y'], want)
        assert verify(out, source, progress=False)['identical']
    assert main(['pack', f'{sig}:1', f'{bkg}:0', '-o', str(out), '--overwrite', '-q'])==0
    assert main(['verify', str(out), f'{sig}:1', f'{bkg}:0'])==0
    assert np.array_equal(JetStore_(out).columns['y'], want)
    refused('differs', verify, out, {sig: 0, bkg: 1}, progress=False)
    refused('class', pack, {sig: 2}, out, overwrite=True, exc=JetbookError)
    folder = tmp_path/'all'
    folder.mkdir()
    shutil.copy(sig, folder)
    assert quiet({folder: 1, bkg: 0}, out).columns['y'].sum()==20


def JetStore_(path):
    from jetbook.data.store import JetStore
    return JetStore(path)


def test_class_of_a_file_that_has_its_own(two, tmp_path, out):
    p = h5(tmp_path/'c.h5', X_jets=X, y=Y, **COLS)
    refused('labels of its own', pack, f'{p}:1', out)
    q = h5(tmp_path/'d.h5', X_jets=X, y=np.ones(40), **COLS)
    assert quiet(f'{q}:1', out).columns['y'].all()
    t = h5(tmp_path/'e.h5', X_jets=X, y=TEXT.astype('S'), **COLS)
    refused('labels of its own', open_source, f'{t}:1')


# --- several files ----------------------------------------------------------------------------------------------------

def test_the_same_jets_twice(tmp_path, out):
    p = h5(tmp_path/'a.h5', X_jets=X, y=Y, **COLS)
    shutil.copy(p, tmp_path/'a (1).h5')
    os.link(p, tmp_path/'link.h5')
    (tmp_path/'soft.h5').symlink_to(p)
    for other in ('a.h5', 'link.h5', 'soft.h5'): refused('The same file twice', pack, [p, tmp_path/other], out)
    refused('hold the same jets', pack, [p, tmp_path/'a (1).h5'], out)
    h5(tmp_path/'b.h5', X_jets=X[::-1], y=Y, **COLS)
    assert len(quiet([p, tmp_path/'b.h5'], out))==80


def test_a_folder_is_read_by_content(tmp_path, out):
    "Whatever the names: nothing that can be read is left out"
    d = tmp_path/'d'
    d.mkdir()
    for i, name in enumerate(('A.H5', 'b.hdf5', 'c')): h5(d/name, X_jets=images(40, 25, 25, 3, i), y=Y, **COLS)
    (d/'notes.txt').write_text('mine')
    (d/'.hidden.h5').write_text('x')
    assert len(quiet(d, out))==120
    os.rename(parquet(tmp_path/'p.parquet', Y), tmp_path/'p.snappy')
    assert len(quiet(tmp_path/'p.snappy', out))==40
    empty = tmp_path/'e'
    empty.mkdir()
    (empty/'x.csv').write_text('pt,m0\n1,2\n')
    refused('x.csv is text, perhaps CSV', pack, empty, out, overwrite=True)


@pytest.mark.parametrize('kind', ['hdf5', 'parquet'])
def test_more_files_than_may_be_open(tmp_path, out, kind):
    paths = []
    for i in range(90):
        x = images(2, 5, 5, 1, i)
        if kind=='hdf5': paths.append(h5(tmp_path/f'{i}.h5', X_jets=x, y=[0, 1]))
        else:
            paths.append(tmp_path/f'{i}.parquet')
            pq.write_table(pa.table(dict(X_jets=x.transpose(0, 3, 1, 2).tolist(), y=[0, 1])), paths[-1])
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir('/proc/self/fd')) if os.path.exists('/proc/self/fd') else 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (used+30, old[1]))
    try: s = quiet(paths, out, layout='array' if kind=='hdf5' else None, channels=['a'])
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert len(s)==180 and np.array_equal(s.images([178, 179]), images(2, 5, 5, 1, 89).transpose(0, 3, 1, 2))


# --- bad jets ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    "A NaN column in jets 3 and 7, a NaN pixel in 7 and 20, a negative one in 21, a label 2 in jet 39; read in several steps"
    monkeypatch.setattr(files, 'STEP_BYTES', 6*25*25*3*4)
    x, y, pt = X.copy(), Y.astype(float), COLS['pt'].copy()
    pt[[3, 7]] = np.nan
    x[[7, 20], 5, 5, 1] = np.nan
    x[21, 5, 5, 0] = -1
    y[39] = 2
    return h5(tmp_path/'spoilt.h5', X_jets=x, y=y, pt=pt, m0=COLS['m0'])


def test_bad_jets_are_refused(spoilt, out):
    e = refused('nan in jet 3; 2 of 40 jets', pack, spoilt, out, progress=False)
    assert "bad='drop'" in e.do and not out.exists()


def test_bad_jets_are_dropped(spoilt, out, capsys):
    s, w = said(pack, spoilt, out, bad='drop', progress=False)
    keep = np.delete(np.arange(40), [3, 7, 20, 21, 39])
    assert w[0]=='5 of 40 jets have impossible values and were left out'
    assert np.array_equal(s.images(), X[keep].transpose(0, 3, 1, 2)) and np.array_equal(s.columns['y'], Y[keep])
    assert verify(out, spoilt, bad='drop', progress=False)['identical']
    refused("bad='drop'", verify, out, spoilt, progress=False)
    line = ['pack', str(spoilt), '-o', str(out), '--overwrite', '-q', '--bad', 'drop', '--negative', 'zero']
    assert main(line)==0 and '4 of 40 jets' in capsys.readouterr().err
    assert verify(out, spoilt, bad='drop', negative='zero', progress=False)['identical']
    refused('jet 18', verify, out, spoilt, bad='drop', progress=False)
    refused('another source', verify, out, spoilt, bad='drop', negative='keep', label=None, channels=list('abc'), progress=False)


def test_bad_jets_are_kept(tmp_path, spoilt, out):
    refused('Labels in column y', pack, spoilt, out, bad='keep', progress=False)
    with h5py.File(spoilt, 'r+') as f: f['y'][39] = 1
    s, w = said(pack, spoilt, out, bad='keep', progress=False)
    assert len(s)==40 and np.isnan(s.columns['pt'][[3, 7]]).all() and w[0]=='2 pixels that are not finite were set to zero'
    assert s.images([7])[0, 1, 5, 5]==0 and s.images([21])[0, 0, 5, 5]==-1
    assert verify(out, spoilt, bad='keep', progress=False)['identical']


def test_nothing_is_left(out):
    refused('No jets are left', pack, np.full((4, 5, 5), np.nan), out, bad='drop', progress=False)
    assert not list(out.parent.iterdir())


def test_dropping_goes_on_after_a_stop(spoilt, out, monkeypatch):
    want = quiet(spoilt, out, bad='drop').images()
    commit = files._Spool.commit
    def stop(self, done):
        commit(self, done)
        if done >= 24: raise KeyboardInterrupt
    out2 = out.with_name('again.jets.h5')
    with monkeypatch.context() as m:
        m.setattr(files._Spool, 'commit', stop)
        with pytest.raises(KeyboardInterrupt): quiet(spoilt, out2, bad='drop')
    src = open_source(spoilt)
    seen, read = [], src.read
    src.read = lambda lo, hi: seen.append(lo) or read(lo, hi)
    s = quiet(src, out2, bad='drop')
    assert seen[0]==24 and np.array_equal(s.images(), want) and out2.read_bytes()==out.read_bytes()


# --- the rest ---------------------------------------------------------------------------------------------------------

def test_other_byte_order(tmp_path, out):
    import torch
    p = h5(tmp_path/'a.h5', X_jets=X.astype('>f4'), y=Y.astype('>i4'), pt=COLS['pt'].astype('>f8'), m0=COLS['m0'].astype('>f8'))
    s = quiet(p, out)
    assert np.array_equal(s.images(), X.transpose(0, 3, 1, 2))
    for v in (*s.columns.values(), *from_images(X, dict(pt=COLS['pt'].astype('>f8'))).columns.values()):
        assert v.dtype.isnative
        torch.as_tensor(v)


def test_images_in_a_group(tmp_path, out):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        for k, v in dict(X_jets=X, y=Y, **COLS).items(): f[f'data/{k}'] = v
    s = quiet(tmp_path/'a.h5', out, image='data/X_jets')
    assert sorted(s.columns)==['m0', 'pt', 'y'] and np.array_equal(s.columns['y'], Y)
    assert np.array_equal(s.images(), X.transpose(0, 3, 1, 2))
    assert quiet(tmp_path/'a.h5', out, image='/data/X_jets', layout='cms').channels==('Tracks', 'ECAL', 'HCAL')
    assert main(['pack', str(tmp_path/'a.h5'), '--image', 'data/X_jets', '-o', str(out), '--overwrite', '-q'])==0
    refused('image=', open_source, tmp_path/'a.h5')


def test_the_width_of_a_pixel(tmp_path, out):
    p = h5(tmp_path/'a.h5', X_jets=X, y=Y, **COLS)
    assert quiet(p, out).cell is None
    assert main(['pack', str(p), '-o', str(out), '--cell', '0.1', '--overwrite', '-q'])==0
    s = JetStore_(out)
    assert s.cell==.1
    assert quiet(s.to_dense(tmp_path/'b.h5'), out).cell==.1
    with h5py.File(tmp_path/'b.h5', 'r+') as f: f['X_jets'][...] = X[::-1]
    refused('fit together', open_source, [p, tmp_path/'b.h5'])
    refused('', pack, p, out, cell=-1, overwrite=True, exc=JetbookError)


def test_eight_channels(tmp_path, out):
    x = images(20, 25, 25, 8)
    pq.write_table(pa.table(dict(X_jet=x.transpose(0, 3, 1, 2).tolist(), am=np.arange(20.))), tmp_path/'a.parquet')
    assert np.array_equal(quiet(tmp_path/'a.parquet', out, image='X_jet').images(), x.transpose(0, 3, 1, 2))
    s = quiet(h5(tmp_path/'a.h5', jet=x, Y=Y[:20, None]), out, image='jet', label='Y')
    assert np.array_equal(s.images(), x.transpose(0, 3, 1, 2)) and np.array_equal(s.columns['y'], Y[:20])


def test_large_chunks_on_a_small_file(tmp_path, out):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f.create_dataset('X_jets', data=X, chunks=(4354, 4, 4, 1), maxshape=(None, 25, 25, 3), compression='gzip')
        for k, v in dict(y=Y, **COLS).items(): f[k] = v
    assert np.array_equal(quiet(tmp_path/'a.h5', out).images(), X.transpose(0, 3, 1, 2))


def test_chunks_of_many_jets_are_read_in_parts(tmp_path, out, monkeypatch):
    monkeypatch.setattr(files, 'READ_MOST', 7*25*25*3*4)
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f.create_dataset('X_jets', data=X, chunks=(40, 5, 5, 1), compression='gzip')
        for k, v in dict(y=Y, **COLS).items(): f[k] = v
    assert open_source(tmp_path/'a.h5').step==7
    assert np.array_equal(quiet(tmp_path/'a.h5', out).images(), X.transpose(0, 3, 1, 2))


@pytest.mark.parametrize('kind', ['hdf5', 'parquet'])
def test_info_of_a_sorted_file(tmp_path, kind, capsys):
    "All over the file, so that both classes are seen"
    toys = toy_jets(60)
    order = np.argsort(toys.columns['y'], kind='stable')
    p = toys.to_dense(tmp_path/'a.h5', idx=order)
    if kind=='parquet':
        x = toys.images(order).numpy()
        pq.write_table(pa.table(dict(X_jets=x.tolist(), **{k: v[order] for k, v in toys.columns.items()})), tmp_path/'a.parquet', row_group_size=4)
        p = tmp_path/'a.parquet'
    i = info(p, n=10)
    assert i['read']==10 and i['jets']==60 and i['columns']['y']['mean']==.5 and i['labels'] is not None
    assert main(['info', str(p), '-n', '10'])==0 and 'labels: ' in capsys.readouterr().out


def test_info_says_what_is_wrong(spoilt, capsys):
    notes = ' '.join(info(spoilt)['notes'])
    for text in ('pt has impossible values in 2 of 40 jets, such as jet 3', 'y has impossible values in 1', '2 of 40 jets have pixels'): assert text in notes
    assert main(['info', str(spoilt)])==0 and 'note: ' in capsys.readouterr().out
    assert main(['info', str(spoilt), '--json'])==0


def test_thousands_of_columns(tmp_path, out):
    "Seconds, not minutes"
    import time
    from_images(X)  # compiles
    p = h5(tmp_path/'a.h5', X_jets=X[:4], **{k: v[:4] for k, v in dict(y=Y, **COLS).items()}, **{f'c{i}': np.arange(4.) for i in range(2000)})
    start = time.process_time()
    s = quiet(p, out)
    assert verify(out, p, progress=False)['identical'] and len(s.columns)==2003
    assert time.process_time()-start < 20
