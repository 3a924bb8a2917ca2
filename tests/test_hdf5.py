"HDF5 files and stores that are damaged, half-written or unlike what they declare: each is refused with its reason"
import errno
import os
import pickle
import subprocess
import sys
import zlib
from unittest.mock import patch as mock

import h5py
import numpy as np
import pytest
from fastcore.test import test_eq as eq, test_fail as fails

from jetbook.data import hdf5
from jetbook.data.paths import atomic_path
from jetbook.data.hdf5 import check_sums, h5_attr, h5_dataset, new_h5, open_h5, write_header
from jetbook.data.store import DataError, JetStore, toy_jets

# --- atomic writes ----------------------------------------------------------------------------------------------------

def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path/'a.txt').write_text('the old one')
    with pytest.raises(KeyError):
        with atomic_path(tmp_path/'a.txt') as part:
            part.write_text('half of the new')
            raise KeyError('stop')
    eq((tmp_path/'a.txt').read_text(), 'the old one')
    eq([p.name for p in tmp_path.iterdir()], ['a.txt'])

def test_a_full_disk(tmp_path):
    def write(x):
        with new_h5(tmp_path/'a.h5') as f: f['x'] = x
    def full(self, fn): self.error = OSError(errno.ENOSPC, 'No space left on device')
    write(np.arange(9.))
    with mock.object(hdf5._Disk, '_try', full): fails(lambda: write(np.zeros(9)), contains='a.h5 does not fit')
    with h5py.File(tmp_path/'a.h5') as f: np.testing.assert_array_equal(f['x'][:], np.arange(9.))
    eq([p.name for p in tmp_path.iterdir()], ['a.h5'])

def test_other_errors_of_the_system_are_passed_on(tmp_path):
    with pytest.raises(OSError, match='Permission') as e:
        with atomic_path(tmp_path/'a.txt'): raise OSError(errno.EACCES, 'Permission denied')
    assert not isinstance(e.value, DataError)

# --- opening ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('data,why', [(b'', 'is empty'), (b'x'*99, 'is text'), ('cut', 'truncated'), (None, 'No such file')])
def test_files_that_cannot_be_opened(tmp_path, data, why):
    p = tmp_path/'a.h5'
    if data=='cut':
        with h5py.File(p, 'w') as f: f['x'] = np.arange(9.)
        data = p.read_bytes()[:-40]
    if data is not None: p.write_bytes(data)
    fails(lambda: open_h5(p).__enter__(), contains=why)

def test_a_file_that_is_open_for_writing(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f['x'] = np.arange(9.)
        f.flush()
        code = f"from jetbook.data.hdf5 import open_h5\ntry: open_h5({str(tmp_path/'a.h5')!r}).__enter__()\nexcept Exception as e: print(type(e).__name__, e)"
        said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
        assert 'InUse' in said and 'in use by another process' in said and 'HDF5_USE_FILE_LOCKING' in said, said

def test_too_many_open_files(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f: f['x'] = np.arange(9.)
    with mock.object(h5py, 'File', side_effect=OSError(errno.EMFILE, 'Too many open files')):
        fails(lambda: open_h5(tmp_path/'a.h5').__enter__(), contains='too many open files')

def test_filters_that_are_not_installed(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f: f.create_dataset('x', data=np.ones(100), chunks=(10,), compression='gzip')
    with mock.object(h5py.h5z, 'filter_avail', lambda k: False), mock.dict(hdf5._PLUGINS, {1: 'zstd'}), open_h5(tmp_path/'a.h5') as f:
        fails(lambda: h5_dataset(f, 'x'), contains='compressed with zstd, which is not installed. Do: pip install hdf5plugin')

def test_filters_of_hdf5plugin(tmp_path):
    p = pytest.importorskip('hdf5plugin')
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        for k in ('Blosc', 'Zstd', 'LZ4'): f.create_dataset(k, data=np.ones(100), chunks=(10,), **getattr(p, k)())
    with open_h5(tmp_path/'a.h5') as f: assert all(h5_dataset(f, k)[:].sum()==100 for k in f)

def test_an_error_after_opening_names_the_file(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f: f['x'] = np.arange(9.)
    def later():
        with open_h5(tmp_path/'a.h5') as f: f['x'][99]
    fails(later, contains='a.h5 is damaged')

def test_attributes(tmp_path):
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f.attrs.update(jets=12, channels=np.array([b'Tracks', b'ECAL']), note='of variable length', huge=np.zeros(5000))
    with open_h5(tmp_path/'a.h5') as f:
        eq({k:h5_attr(f, k) for k in ('jets', 'channels', 'note', 'huge', 'none')},
           dict(jets=12, channels=['Tracks', 'ECAL'], note=None, huge=None, none=None))

# --- datasets ---------------------------------------------------------------------------------------------------------

REFUSED = dict(huge='larger than', chunked='larger than', fat='chunks too large', soft='is a link', out='other.h5', text='not numeric',
               ext='other files', virt='other files', none='No none')

@pytest.fixture
def hostile(tmp_path):
    with h5py.File(tmp_path/'hostile.h5', 'w') as f:
        f.create_dataset('huge', shape=(139306, 125, 125, 3), dtype='f4')
        f.create_dataset('chunked', shape=(139306, 125, 125, 3), dtype='f4', chunks=(1, 125, 125, 3))
        f.create_dataset('fat', shape=(2**29,), dtype='f4', chunks=(2**29,))
        f['soft'] = h5py.SoftLink('/huge')
        f['out'] = h5py.ExternalLink('other.h5', 'x')
        f['text'] = 'no numbers'
        f.create_dataset('ext', shape=(4,), dtype='f4', external=[(str(tmp_path/'raw.bin'), 0, 16)])
        lay = h5py.VirtualLayout((4,), 'f4')
        lay[:] = h5py.VirtualSource('a.h5', 'x', (4,))
        f.create_virtual_dataset('virt', lay)
        f['ok'] = np.arange(4.)
    return tmp_path/'hostile.h5'

@pytest.mark.parametrize('key', REFUSED)
def test_datasets_that_are_refused(hostile, key):
    with open_h5(hostile) as f: fails(lambda: h5_dataset(f, key), contains=REFUSED[key])

def test_a_dataset_has_no_inside(hostile):
    with open_h5(hostile) as f:
        np.testing.assert_array_equal(h5_dataset(f, 'ok')[:], np.arange(4.))
        fails(lambda: h5_dataset(f, 'ok/deeper'), contains='No ok/deeper')

def test_compression(tmp_path):
    z = zlib.compressobj(9)
    bomb = z.flush(zlib.Z_FULL_FLUSH) + (z.compress(bytes(2**20)) + z.flush(zlib.Z_FULL_FLUSH))*1500
    with h5py.File(tmp_path/'bomb.h5', 'w') as f:
        f.create_dataset('x', (2**20,), 'f4', chunks=(2**20,), compression='gzip').id.write_direct_chunk((0,), bomb)
    with open_h5(tmp_path/'bomb.h5') as f: fails(lambda: h5_dataset(f, 'x'), contains='unpack to more')
    with h5py.File(tmp_path/'zip.h5', 'w') as f:
        f.create_dataset('x', data=np.arange(2**20, dtype='f4'), chunks=(2**18,), compression='gzip', shuffle=True)
        f['g/y'] = 1.
    with open_h5(tmp_path/'zip.h5') as f:
        np.testing.assert_array_equal(h5_dataset(f, 'x')[:], np.arange(2**20, dtype='f4')) # honest compression passes
        eq(h5_dataset(f, 'g/y')[()], 1.)
        fails(lambda: h5_dataset(f, 'g'), contains='not a dataset')

# --- stores -----------------------------------------------------------------------------------------------------------

def put(key, i, v):
    def fn(f): f[key][i] = v
    return fn

def swap(key, v):
    def fn(f):
        del f[key]
        f[key] = v
    return fn

@pytest.mark.parametrize('fn,why', [
    (lambda f: f.attrs.pop('complete'), 'half-written'), (lambda f: f.attrs.update(version=99), 'newer version'),
    (lambda f: f.attrs.update(format='x'), 'not a jetbook store'), (lambda f: f.attrs.update(height='125'), 'height is missing or wrong'),
    (lambda f: f['HCAL'].attrs.pop('upsample'), 'HCAL/upsample is missing'), (put('ECAL/pixel', 0, 65000), 'outside the image'),
    (put('ECAL/offsets', 1, 10**9), 'does not divide'), (swap('ECAL/value', np.zeros(3, 'f4')), 'unequal'),
    (swap('ECAL/value', np.zeros(3, 'i8')), 'wrong types'), (swap('y', np.full(40, 7)), 'other than 0 and 1'),
    (lambda f: f.pop('HCAL'), 'lacks channel'), (swap('HCAL/pixel', h5py.SoftLink('/ECAL/pixel')), 'is a link')])
@pytest.mark.parametrize('mmap', [False, True])
def test_stores_that_are_refused(store_file, fn, why, mmap):
    with h5py.File(store_file, 'r+') as f: fn(f)
    fails(lambda: JetStore(store_file, mmap=mmap), contains=why)

def test_a_header_alone_is_half_written(tmp_path):
    with h5py.File(tmp_path/'head.jets.h5', 'w') as f: write_header(f, 5, 5, ['pT'], 'nowhere', 'array')
    fails(lambda: JetStore(tmp_path/'head.jets.h5'), contains='half-written')

def same(a, b): np.testing.assert_array_equal(a.images().numpy().view(np.uint32), b.images().numpy().view(np.uint32))

@pytest.mark.parametrize('mmap', [False, True])
def test_there_and_back(toys, store_file, mmap):
    again = JetStore(store_file, mmap=mmap)
    same(again, toys)
    for k in toys.columns: np.testing.assert_array_equal(again.columns[k], toys.columns[k])
    eq((again.classes, again.layout, again.source, again.upsample), (toys.classes, toys.layout, toys.source, toys.upsample))
    same(pickle.loads(pickle.dumps(again)), toys)
    assert (len(pickle.dumps(again)) < 1000) is mmap    # a mapped store sends its path

def test_half_precision(toys, tmp_path):
    s = JetStore(toys.save(tmp_path/'half.jets.h5', value_dtype='float16'))
    np.testing.assert_allclose(s.images().numpy(), toys.images().numpy(), rtol=1e-3, atol=1e-3)
    assert os.path.getsize(s.path) < os.path.getsize(toys.save(tmp_path/'full.jets.h5'))
    large = JetStore.from_entries(dict(a=([0, 1], [3], [1e9])), 5, 5)
    fails(lambda: large.save(tmp_path/'x.jets.h5', value_dtype='float16'), contains='too large')
    assert not (tmp_path/'x.jets.h5').exists()


def test_home_folder(toys, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    eq(toys[:3].save('~/three.jets.h5'), tmp_path/'three.jets.h5')
    for mmap in (False, True):
        s = JetStore('~/three.jets.h5', mmap=mmap)
        eq((s.path, len(s.check())), (tmp_path/'three.jets.h5', 3))

def test_thousands_of_columns(toys, tmp_path):
    "Are opened, shown and compared in about a second"
    import time
    many = toys._replace(columns={f'c{i}': np.full(40, i) for i in range(3000)})
    start = time.process_time()
    s = JetStore(many.save(tmp_path/'many.jets.h5'))
    eq((s[3]['c2999'], len(repr(s)) < 1500, check_sums(s.path)['arrays']), (2999, True, 3009))
    assert time.process_time() - start < 10
