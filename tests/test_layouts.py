"Every dense format that people bring: byte orders, precisions, channel orders, labels of any kind, NumPy files, several files as one"

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import quiet
from jetbook.data.files import info, open_source, recognise, verify
from jetbook.data.store import DataError

rng = np.random.default_rng(5)
X = (rng.random((30, 25, 25, 3))*(rng.random((30, 25, 25, 3)) < .04)).astype('f4')
X = X.astype('f2').astype('f4') # so that half precision holds it
Y = np.arange(30)%2


@pytest.fixture
def out(tmp_path): return tmp_path/'out.jets.h5'


def h5(path, **data):
    with h5py.File(path, 'w') as f:
        for k, v in data.items(): f[k] = v
    return path


def images(s): return s.images().permute(0, 2, 3, 1).numpy()


def refused(text, fn, *args, **kwargs):
    with pytest.raises(DataError) as e: fn(*args, **kwargs)
    assert text in str(e.value), e.value


# --- HDF5 and parquet -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('first', [False, True])
def test_eight_channels(tmp_path, out, first):
    "GSoC 2026: jet (N, 125, 125, 8), Y (N, 1); the other file has no labels"
    x = (rng.random((6, 125, 125, 8)) * (rng.random((6, 125, 125, 8)) < .01)).astype('f4')
    data = x.transpose(0, 3, 1, 2) if first else x
    path = h5(tmp_path/'a.h5', jet=data, Y=(np.arange(6)%2)[:, None])
    assert recognise(path)=='gsoc'
    s = quiet(path, out)
    assert np.array_equal(images(s), x) and s.columns['y'].tolist()==[0, 1]*3 and s.cell==.0174
    s = quiet(h5(tmp_path/'b.h5', jet=data), out)
    assert s.label_column is None and len(s.channels)==8
    s = quiet(path, out, channels=list('abcdefgh'))
    assert s.channels==tuple('abcdefgh') and verify(s, path, channels=list('abcdefgh'), progress=False)['identical']


def nested(x):
    a = pa.array(x.ravel())
    for n in x.shape[:0:-1]: a = pa.ListArray.from_arrays(np.arange(0, len(a)+1, n, dtype=np.int32), a)
    return a


def test_super_resolution(tmp_path, out):
    "Two images a jet: the one of high resolution, and if it is asked for the other"
    low = (rng.random((30, 3, 16, 16)) * (rng.random((30, 3, 16, 16)) < .1)).astype('f8')
    table = pa.table(dict(X_jets_LR=nested(low), X_jets=nested(X.transpose(0, 3, 1, 2).astype('f8')), pt=np.ones(30), m0=np.ones(30), y=Y.astype('f8')))
    pq.write_table(table, tmp_path/'a.parquet', row_group_size=7)
    s = quiet(tmp_path/'a.parquet', out)
    assert np.array_equal(images(s), X) and s.columns['y'].tolist()==Y.tolist()
    s = quiet(tmp_path/'a.parquet', out, image='X_jets_LR')
    assert np.array_equal(s.images().numpy(), low.astype('f4')) and s.columns['y'].tolist()==Y.tolist()


@pytest.mark.parametrize('dtype', ['>f4', '<f8', '>f8', 'f2', '>f2'])
def test_precision_and_byte_order(tmp_path, out, dtype):
    s = quiet(h5(tmp_path/'a.h5', X_jets=X.astype(dtype), y=Y.astype('>i4'), pt=np.ones(30, '>f8'), m0=np.ones(30, 'f2')), out)
    assert np.array_equal(images(s), X) and s.columns['y'].tolist()==Y.tolist()
    assert verify(s, tmp_path/'a.h5', progress=False)['identical']


@pytest.mark.parametrize('label', [Y.astype(bool), Y[:, None], np.eye(2)[Y], np.array([b'quark', b'gluon'])[1-Y], Y.astype('f2')])
def test_labels(tmp_path, out, label):
    s = quiet(h5(tmp_path/'a.h5', X_jets=X, y=label, pt=np.ones(30), m0=np.ones(30)), out)
    assert s.columns['y'].tolist()==Y.tolist()


def test_whole_numbers(tmp_path, out):
    x = (X*255).astype(np.uint8)
    s = quiet(h5(tmp_path/'a.h5', X_jets=x, y=Y, pt=np.ones(30), m0=np.ones(30)), out)
    assert np.array_equal(images(s), x)


# --- NumPy ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['f4', '>f4', 'f8', 'f2', 'u1', '?'])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(tmp_path, out, save, dtype):
    x = (X > 0) if dtype=='?' else (X*255 if dtype=='u1' else X).astype(dtype)
    save(tmp_path/'a.npz', X=x, y=Y, pt=np.ones(30), names=np.array(['a']*30))
    s = quiet(tmp_path/'a.npz', out)
    assert np.array_equal(images(s), x.astype('f4')) and s.columns['y'].tolist()==Y.tolist() and 'pt' in s.columns
    assert verify(s, tmp_path/'a.npz', progress=False)['identical'] and info(tmp_path/'a.npz')['jets']==30


def test_npy_with_labels_beside(tmp_path, out):
    for images_, labels in (('X_train', 'y_train'), ('images', 'labels'), ('jets', 'jets_y'), ('x', 'y')):
        d = tmp_path/images_
        d.mkdir()
        np.save(d/f'{images_}.npy', X[..., 0])
        np.save(d/f'{labels}.npy', Y)
        for source in (d/f'{images_}.npy', d, [d/f'{images_}.npy', d/f'{labels}.npy']):
            s = quiet(source, out)
            assert len(s)==30 and np.array_equal(images(s), X[..., :1]) and s.columns['y'].tolist()==Y.tolist()


def test_one_class_a_file(tmp_path, out):
    np.save(tmp_path/'sig.npy', X[:20])
    np.save(tmp_path/'bkg.npy', X[20:].transpose(0, 3, 1, 2))
    s = quiet([f'{tmp_path/"sig.npy"}:1', f'{tmp_path/"bkg.npy"}:0'], out)
    assert np.array_equal(images(s), X) and s.columns['y'].tolist()==[1]*20+[0]*10


def test_layout_names_the_channels(tmp_path, out):
    np.save(tmp_path/'x.npy', X)
    s = quiet(tmp_path/'x.npy', out, layout='cms')
    assert s.channels==('Tracks', 'ECAL', 'HCAL')
    np.savez(tmp_path/'two.npz', a=X, b=X)
    refused('does not tell its images', quiet, tmp_path/'two.npz', out)
    assert len(quiet(tmp_path/'two.npz', out, image='b'))==30


def test_wrong_numpy_files(tmp_path, out):
    np.save(tmp_path/'a.npy', np.ones(5))
    refused('does not tell its images', quiet, tmp_path/'a.npy', out)
    np.save(tmp_path/'b.npy', np.asfortranarray(X))
    refused('stored column by column', quiet, tmp_path/'b.npy', out)
    np.save(tmp_path/'c.npy', np.array([dict()]*3, object))
    refused('objects are pickles', quiet, tmp_path/'c.npy', out)
    data = (tmp_path/'b.npy').read_bytes()
    np.save(tmp_path/'d.npy', X)
    data = (tmp_path/'d.npy').read_bytes()
    (tmp_path/'d.npy').write_bytes(data[:len(data)//2])
    refused('larger than what the file holds', quiet, tmp_path/'d.npy', out)
    (tmp_path/'e.npy').write_bytes(data.replace(b'(30, 25, 25, 3)', b'(90, 25, 25, 3)'))
    refused('larger than what the file holds', quiet, tmp_path/'e.npy', out)
    (tmp_path/'f.npy').write_bytes(data[:8]+b'\xff\xff'+data[10:])
    refused('damaged', quiet, tmp_path/'f.npy', out)
    np.savez_compressed(tmp_path/'g.npz', X=X)
    data = bytearray((tmp_path/'g.npz').read_bytes())
    data[2000:2010] = bytes(10)
    (tmp_path/'g.npz').write_bytes(data)
    refused('', quiet, tmp_path/'g.npz', out)


def test_a_file_that_changes_while_it_is_read(tmp_path, out):
    np.save(tmp_path/'x.npy', X)
    src = open_source(tmp_path/'x.npy')
    (tmp_path/'x.npy').write_bytes((tmp_path/'x.npy').read_bytes()[:9000])
    refused('ends early', quiet, src, out)
