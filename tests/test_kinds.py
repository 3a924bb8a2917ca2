"Files are known by what is in them, not by their names; what cannot be read is named for what it is"
import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import h5py
import numpy as np
import pytest

from jetbook.data.hdf5 import open_h5
from jetbook.data.paths import file_kind
from jetbook.data.store import DataError, JetStore


def _into(write):
    b = io.BytesIO()
    write(b)
    return b.getvalue()


def _zip(name): return _into(lambda b: zipfile.ZipFile(b, 'w').writestr(name, b'x'*50))


def _tar(b):
    with tarfile.open(fileobj=b, mode='w') as t: t.addfile(tarfile.TarInfo('jets.h5'))


def _torch(b):
    import torch
    torch.save(dict(x=torch.ones(3)), b)


KINDS = {
    'torch':(_into(_torch), 'PyTorch', 'torch.load'),
    'zip':(_zip('jets.hdf5'), 'a zip archive', 'unzip'),
    'gzip':(gzip.compress(b'x'), 'gzip', 'gunzip'),
    'bz2':(bz2.compress(b'x'), 'bzip2', 'bunzip2'),
    'xz':(lzma.compress(b'x'), 'xz', 'unxz'),
    'tar':(_into(_tar), 'a tar archive', 'tar -xf'),
    'zstd':(b'\x28\xb5\x2f\xfd\x04\x58', 'zstd', 'unzstd'),
    'pickle':(pickle.dumps([1]), 'pickle', 'runs its code'),
    'page':(b'\n<!DOCTYPE html><html>Please log in', 'a web page', 'log-in'),
    'json':(b'{"error": "403"}', 'JSON', 'download'),
    'lfs':(b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'Git LFS', 'git lfs pull'),
    'csv':(b'pt,m0\n1,2\n', 'CSV', 'pandas'),
    'png':(b'\x89PNG\r\n\x1a\n', 'PNG', 'HDF5'),
    'zeros':(bytes(5000), 'unfinished download', 'download it again'),
    'empty':(b'', 'empty', 'download it again'),
    'noise':(bytes(range(7, 250)), 'no kind', 'HDF5'),
}


PACKED = {
    'npy':(_into(lambda b: np.save(b, np.ones(3))), '(.npy)'),
    'npz':(_into(lambda b: np.savez(b, X=np.ones(3))), '(.npz)'),
    'packed npz':(_into(lambda b: np.savez_compressed(b, X=np.ones(3))), '(.npz)'),
    'root':(b'root\0\0\xf2\x30', 'ROOT'),
}


@pytest.mark.parametrize('name', list(PACKED))
def test_what_is_packed_but_is_no_hdf5(tmp_path, name):
    data, what = PACKED[name]
    (tmp_path/'jets.hdf5').write_bytes(data)
    kind, said = file_kind(tmp_path/'jets.hdf5')
    assert what in kind and said is None
    with pytest.raises(DataError) as e: JetStore(tmp_path/'jets.hdf5')
    assert what in str(e.value) and 'jetbook pack' in e.value.do


@pytest.mark.parametrize('name', list(KINDS))
def test_what_a_file_is(tmp_path, name):
    data, what, do = KINDS[name]
    (tmp_path/'jets.hdf5').write_bytes(data)
    kind, said = file_kind(tmp_path/'jets.hdf5')
    assert what in kind and do in said
    for fn in (JetStore, lambda p: open_h5(p).__enter__()):
        with pytest.raises(DataError) as e: fn(tmp_path/'jets.hdf5')
        assert what in str(e.value) and do in e.value.do


def test_hdf5_behind_a_user_block(tmp_path):
    with h5py.File(tmp_path/'a', 'w', userblock_size=2048) as f: f['x'] = 1
    assert file_kind(tmp_path/'a')==('HDF5', None)
