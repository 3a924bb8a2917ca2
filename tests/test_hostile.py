"Files that are wrong, cut, or meant to harm: each gives an error that says what was found, and never ends the interpreter"
import os, shutil, signal, zlib
from collections import Counter

import h5py, numpy as np, pytest

from conftest import survives
from jetbook.data.store import DataError, JetStore, JetbookError, StoreError
from jetbook.data.files import info, open_source, pack, verify

def refused(fn, *texts, kind=DataError):
    "`fn` must raise a `kind` whose message holds `texts` and says what was found, or what to do"
    with pytest.raises(kind) as e: fn()
    e = e.value
    for t in texts: assert t in str(e), f'{t!r} is not in: {e}'
    assert e.what and (e.found is not None or e.do is not None), e
    for k,v in dict(Found=e.found, Expected=e.expected, Do=e.do).items(): assert (f'{k}: ' in str(e))==(v is not None)

def edit(path, fn, to=None):
    "A copy of the HDF5 file `path`, changed by `fn`"
    to = to or path.with_name('edited'+''.join(path.suffixes))
    shutil.copy(path, to)
    with h5py.File(to,'r+') as f: fn(f)
    return to

def replace(key, value, **kwargs):
    def _fn(f):
        if key in f: del f[key]
        f.create_dataset(key, data=value, **kwargs)
    return _fn

def packs(path, **kwargs):
    "A call of `pack` on `path`; whatever happens, nothing must stay behind"
    def _fn():
        dest = path.parent/'dest'/'out.jets.h5'
        try: return pack(path, dest, progress=False, **kwargs)
        finally: assert not dest.exists() and not list(dest.parent.glob('*')), 'a refused source left something behind'
    return _fn

# --- contents ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('key', ['X_jets','pt','m0'])
def test_missing_key(dense_file, key):
    refused(packs(edit(dense_file, lambda f: f.pop(key))), 'X_jets' if key=='X_jets' else f'No {key}', 'Expected: ')

def test_missing_label(dense_file, tmp_path):
    "Jets to be scored have none; what stands under another name must be labels all the same"
    s = pack(edit(dense_file, lambda f: f.pop('y')), tmp_path/'a.jets.h5', progress=False)
    assert s.layout=='cms' and s.label_column is None
    for name,why in (('pt','other than 0 and 1'), ('m0','two labels'), ('z','No label z')):
        refused(packs(dense_file if name=='m0' else edit(dense_file, lambda f: f.pop('y')), label=name), why)

@pytest.mark.parametrize('shape', [(40,), (40,125), (40,125,125,2), (40,125,125,3,1), (40,2,125,125), (0,125,125,3), (40,0,125,3), (40,300,300,3), ()])
def test_wrong_shape(dense_file, shape): refused(packs(edit(dense_file, replace('X_jets', np.zeros(shape,'f4')))), 'Found: ')

@pytest.mark.parametrize('shape', [(39,), (40,2), ()])
def test_column_of_wrong_shape(dense_file, shape): refused(packs(edit(dense_file, replace('pt', np.zeros(shape)))), 'pt has a wrong shape', "Expected: (40,)")

@pytest.mark.parametrize('value,word', [(np.nan,'not a number'), (np.inf,'infinite'), (-np.inf,'infinite'), (-1e-30,'negative')])
@pytest.mark.parametrize('chunks', [None, (1,125,125,3)])
def test_bad_pixels(dense_file, value, word, chunks):
    def _fn(f):
        x = f['X_jets'][:]; x[17,3,4,1] = value
        replace('X_jets', x, chunks=chunks)(f)
    refused(packs(edit(dense_file, _fn)), word, 'ECAL', 'jet 17', 'Do: correct the file')
    if word=='infinite': refused(packs(edit(dense_file, _fn), negative='keep'), word)

@pytest.mark.parametrize('value', [2, -1, .5, 255])
def test_labels_other_than_0_and_1(dense_file, value):
    def _fn(f): y = f['y'][:].astype(float); y[3] = value; replace('y', y)(f)
    refused(packs(edit(dense_file, _fn)), 'Labels in column y', str(value), 'Expected: 0 or 1')

def test_labels_in_an_extra_column(dense_file): refused(packs(edit(dense_file, replace('signal', np.arange(40)))), 'Labels in column signal')
def test_column_of_nan(dense_file): refused(packs(edit(dense_file, replace('m0', np.full(40,np.nan)))), 'm0', 'jet 0')

@pytest.mark.parametrize('data', [b'', b'x', b'no HDF5 at all'*100, b'\x89HDF\r\n\x1a\n', b'\x89HDF\r\n\x1a\n'+bytes(500)])
@pytest.mark.parametrize('name', ['a.h5','a.jets.h5','a.parquet'])
def test_no_data_file_at_all(tmp_path, data, name):
    (tmp_path/name).write_bytes(data)
    for fn in (JetStore, info, open_source, packs(tmp_path/name), verify): refused((lambda: fn(tmp_path/name)) if not hasattr(fn,'__closure__') or fn.__closure__ is None else fn, 'Do: ')

def test_no_file(tmp_path):
    for fn in (JetStore, info, open_source, verify): refused(lambda: fn(tmp_path/'gone.h5'), 'No such file')
    refused(lambda: JetStore(tmp_path), 'is a folder')
    refused(lambda: open_source(tmp_path), 'No files')

@pytest.mark.parametrize('what', ['group','text','compound','objects','nothing','type'])
def test_images_that_are_none(dense_file, what):
    def _fn(f):
        del f['X_jets']
        if what=='group': f.create_group('X_jets')
        if what=='text': f['X_jets'] = 'X'
        if what=='compound': f['X_jets'] = np.zeros((40,125,125), dict(names=['a'],formats=['f4']))
        if what=='objects': f.create_dataset('X_jets', (40,3), h5py.vlen_dtype('f4'))
        if what=='nothing': f['X_jets'] = h5py.Empty('f4')
        if what=='type': f['X_jets'] = np.dtype('f4')
    refused(packs(edit(dense_file, _fn)), 'X_jets')

def test_numbers_of_other_kinds_are_read(dense_file):
    "Whole numbers, one bit, complex: the first two are intensities, the last is not"
    x = np.zeros((40,125,125,3)); x[3,4,5] = 1
    for t in ('u1','i2','u8','?'): 
        s = pack(edit(dense_file, replace('X_jets', x.astype(t))), dense_file.with_name(f'{t[0]}.jets.h5'), progress=False, overwrite=True)
        assert s.images().sum()==3
    refused(packs(edit(dense_file, replace('X_jets', x[:,:4].astype('c8')))), 'not numeric')

# --- data that lies elsewhere -----------------------------------------------------------------------------------------

def _outside(where):
    "Ways in which an HDF5 name can lead to data in another file"
    def soft(f, k): f[k] = h5py.SoftLink('/'+where)
    def external(f, k): f[k] = h5py.ExternalLink('secret.h5', where)
    def storage(f, k): f.create_dataset(k, (40,), 'f4', external=[('/etc/passwd',0,160)])
    def virtual(f, k):
        lay = h5py.VirtualLayout((40,),'f4'); lay[:] = h5py.VirtualSource('secret.h5', where, (40,))
        f.create_virtual_dataset(k, lay)
    return dict(soft=soft, external=external, storage=storage, virtual=virtual)

@pytest.mark.parametrize('way', ['soft','external','storage','virtual'])
@pytest.mark.parametrize('key', ['X_jets','y'])
def test_dense_file_that_points_elsewhere(dense_file, way, key):
    shutil.copy(dense_file, dense_file.with_name('secret.h5'))
    def _fn(f): del f[key]; _outside(key)[way](f, key)
    refused(packs(edit(dense_file, _fn)), key, 'link' if way in ('soft','external') else 'other files')

@pytest.mark.parametrize('way', ['soft','external','storage','virtual'])
@pytest.mark.parametrize('key', ['pt','ECAL/pixel','ECAL/value','HCAL/offsets','extra'])
def test_store_that_points_elsewhere(store_file, way, key):
    shutil.copy(store_file, store_file.with_name('secret.h5'))
    def _fn(f):
        if key in f: del f[key]
        _outside('pt' if key=='extra' else key)[way](f, key)
    for mmap in (False,True): refused(lambda: JetStore(edit(store_file, _fn), mmap=mmap), key)

@pytest.mark.parametrize('way', ['soft','external'])
def test_channel_that_is_a_link(store_file, way):
    shutil.copy(store_file, store_file.with_name('secret.h5'))
    def _fn(f): f.move('ECAL','moved') if way=='soft' else f.pop('ECAL'); f['ECAL'] = h5py.SoftLink('/moved') if way=='soft' else h5py.ExternalLink('secret.h5','ECAL')
    refused(lambda: JetStore(edit(store_file, _fn)), 'lacks channel ECAL', kind=StoreError)

def test_groups_in_a_circle(dense_file, store_file):
    def _circle(f): f['X_loop'] = f['/']; g = f.create_group('deep'); g['up'] = f['/']
    s = pack(edit(dense_file, _circle), dense_file.with_name('c.jets.h5'), progress=False)  # not followed
    assert set(s.columns)=={'y','pt','m0'}
    refused(lambda: JetStore(edit(store_file, _circle)), 'not a dataset')
    def _self(f): del f['X_jets']; f['X_jets'] = f['/']
    refused(packs(edit(dense_file, _self)), 'X_jets is not a dataset')
    def _channel(f): del f['ECAL']; f['ECAL'] = f['/']
    refused(lambda: JetStore(edit(store_file, _channel)), 'upsample', kind=StoreError)

# --- declared, but not there ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape,chunks', [((139306,125,125,3),None), ((139306,125,125,3),(1,125,125,3)), ((2**40,125,125,3),(1,125,125,3)),
                                          ((2**31,125,125,3),None), ((40,125,125,3),(20,125,125,3))])
def test_images_larger_than_the_file(dense_file, shape, chunks):
    def _fn(f): del f['X_jets']; f.create_dataset('X_jets', shape, 'f4', chunks=chunks)
    refused(packs(edit(dense_file, _fn)), 'X_jets is larger than what the file holds', 'Expected: ')

def test_one_jet_needs_the_whole_file(tmp_path):
    "A chunk over all jets, or chunks too large, would bring all in memory to read one"
    for i,(n,c) in enumerate([(2**20,(2**20,1,1,1)), (2**13,(2**13,125,125,3))]):
        with h5py.File(tmp_path/f'{i}.h5','w') as f:
            d = f.create_dataset('X_jets', (n,125,125,3), 'f4', chunks=c, compression='gzip')
            if i==0:
                for j in range(125*125*3): d.id.write_direct_chunk((0,*np.unravel_index(j,(125,125,3))), b'x'); 
            for k in ('y','pt','m0'): f[k] = np.zeros(n)
        refused(packs(tmp_path/f'{i}.h5'), 'chunks', 'Do: rewrite the file with smaller chunks')

def test_store_arrays_larger_than_the_file(store_file):
    for key in ('ECAL/pixel','ECAL/value','ECAL/offsets','pt'):
        def _fn(f): t = f[key].dtype; del f[key]; f.create_dataset(key, (2**38,), t)
        for mmap in (False,True): refused(lambda: JetStore(edit(store_file, _fn), mmap=mmap), 'larger than what the file holds')

def test_store_arrays_that_are_wrong(store_file):
    "Everything the compiled kernels rely on"
    def _set(key, i, v):
        def _fn(f): f[key][i] = v
        return _fn
    for fn,text in {_set('ECAL/pixel',5,15625):'outside the image', _set('HCAL/pixel',0,625):'outside the image', _set('ECAL/offsets',0,-1):'does not divide',
                    _set('ECAL/offsets',7,2**62):'does not divide', _set('ECAL/offsets',7,-2**62):'does not divide', _set('ECAL/offsets',40,0):'does not divide',
                    replace('ECAL/offsets',np.zeros(0,'i8')):'not flat', replace('ECAL/offsets',np.zeros(1,'i8')):'wrong length',
                    replace('Tracks/offsets',np.zeros(1,'i8')):'ivide', replace('ECAL/pixel',np.zeros((2,2),'u2')):'not flat',
                    replace('ECAL/pixel',np.zeros(4,'i4')):'wrong types', replace('ECAL/value',np.zeros(4,'f8')):'wrong types',
                    replace('ECAL/value',np.zeros(4,'>f4')):'wrong types', replace('ECAL/offsets',np.zeros(41,'f8')):'wrong types',
                    replace('ECAL/value',np.float32(1)):'not flat', replace('y',np.full(40,3)):'other than 0 and 1', replace('y',np.zeros((40,1))):'wrong shape',
                    replace('pt',np.zeros(39)):'wrong shape', replace('pt',[b'a']*40):'not numeric'}.items():
        for mmap in (False,True): refused(lambda: JetStore(edit(store_file, fn), mmap=mmap), text)

def _attr(key, name, value):
    def _fn(f):
        if value is None: del f[key].attrs[name]
        else: f[key].attrs[name] = value
    return _fn

def test_store_attributes(store_file):
    "Missing, of another type, absurd: StoreError or DataError, and never a KeyError, a ValueError of Python's or a huge allocation"
    wrong = [None, 'x', b'x', 1.5, [1,2], np.zeros((3,3)), h5py.Empty('f4'), np.nan, '', np.inf]
    for name in ('height','width','version','channels','source','layout','created_by','complete','format'):
        for v in wrong:
            if name in ('source','layout','created_by') and isinstance(v, bytes): continue # any text will do
            refused(lambda: JetStore(edit(store_file, _attr('/',name,v))), 'edited.jets.h5', kind=StoreError)
    for v in wrong: refused(lambda: JetStore(edit(store_file, _attr('HCAL','upsample',v))), 'HCAL/upsample', kind=StoreError)
    for v in (0,-1,-5,2,25,10**6,2**62): refused(lambda: JetStore(edit(store_file, _attr('HCAL','upsample',v))), 'HCAL', kind=StoreError)
    for name in ('height','width'):
        for v in (10**9, 2**62, 0, -125, 1, 100): refused(lambda: JetStore(edit(store_file, _attr('/',name,v))))
    def _both(f): f.attrs['height'] = f.attrs['width'] = -125
    refused(lambda: JetStore(edit(store_file, _both)), '-125')
    for v in ([b'ECAL']*2, [b'nothing'], [b'']*3, [b'/'], [b'ECAL/pixel'], [b'.'], [b'..'], [f'c{i}'.encode() for i in range(4000)], [1,2,3], [b'y'], [b'\xff\xfe']):
        refused(lambda: JetStore(edit(store_file, _attr('/','channels',v))), kind=StoreError)
    refused(lambda: JetStore(edit(store_file, _attr('/','version',99))), 'newer version', 'Found: 99', 'Do: pip install -U jetbook', kind=StoreError)

def test_half_written_store(store_file):
    for v in (None, False, 0, np.bool_(False)): refused(lambda: JetStore(edit(store_file, _attr('/','complete',v))), 'half-written', 'Do: run pack again', kind=StoreError)

def test_a_dense_file_is_no_store(dense_file): refused(lambda: JetStore(dense_file), 'not a jetbook store', 'X_jets', 'Do: pack it first', kind=StoreError)
def test_a_store_is_no_dense_file(store_file): refused(lambda: open_source(store_file), 'packed already', 'Do: open it with JetStore')

# --- cut and flipped --------------------------------------------------------------------------------------------------

def cuts(n, k=60):
    "Lengths to cut a file of `n` bytes to: both ends finely, the middle at random"
    rng = np.random.default_rng(0)
    return sorted({*range(0,40,3), 96, 100, 511, 512, 2047, 2048, *(n-i for i in (1,2,3,8,40,100,1000)), *rng.integers(1, n, k).tolist()} & set(range(n)))

@pytest.mark.parametrize('mmap', [False,True])
def test_truncated_store(store_file, mmap):
    raw,bad = store_file.read_bytes(),store_file.with_name('cut.jets.h5')
    for n in cuts(len(raw)): bad.write_bytes(raw[:n]); refused(lambda: JetStore(bad, mmap=mmap), 'cut.jets.h5')

@pytest.mark.parametrize('how', [dict(), dict(chunks=(1,125,125,3)), dict(chunks=(8,125,125,3), compression='gzip')])
def test_truncated_dense_file(toys, tmp_path, how):
    good,bad = toys.to_dense(tmp_path/'good.h5', **how),tmp_path/'cut.h5'
    n = good.stat().st_size
    shutil.copy(good, bad)
    for k in cuts(n)[::-1]: os.truncate(bad, k); refused(packs(bad), 'cut.h5')

@pytest.fixture
def parquet_file(toys, tmp_path):
    "A parquet file as the end-to-end production writes it"
    return write_parquet(tmp_path/'toy.parquet', toys.images().numpy(), y=toys.columns['y'].astype(float), pt=toys.columns['pt'])

def nested(x, types=(), mask=None):
    "An array (n, C, H, W) as pyarrow lists of lists of lists"
    import pyarrow as pa
    a = pa.array(x.ravel(), mask=mask)
    for s in x.shape[:0:-1]: a = pa.ListArray.from_arrays(np.arange(0,len(a)+1,s,dtype=np.int32), a)
    return a

def write_parquet(path, x, rows=16, **cols):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table(dict(X_jets=nested(x) if isinstance(x,np.ndarray) else x, **cols)), path, row_group_size=rows)
    return path

def test_truncated_parquet(parquet_file):
    raw,bad = parquet_file.read_bytes(),parquet_file.with_name('cut.parquet')
    for n in cuts(len(raw), 20): bad.write_bytes(raw[:n]); refused(packs(bad), 'cut.parquet')

def look(s):
    "Arrays in range, and the kernels run over them"
    assert s.images().shape==(len(s),len(s.channels),s.height,s.width)
    s.clouds(); s.summary()
    for o,p,v in s.entries.values(): assert o[-1]==len(p)==len(v) and (np.diff(o)>=0).all()

def flip(path, seed, n):
    "Read `n` corrupted copies of `path`; how many were read and refused"
    raw,rng,seen = path.read_bytes(),np.random.default_rng(seed),Counter()
    bad = path.with_name('flip'+''.join(path.suffixes))
    for k in range(n):
        b = bytearray(raw)
        for _ in range(rng.integers(1,4)):
            i = rng.integers(*{0:(len(b)-6000,len(b)), 1:(0,4000)}.get(int(rng.integers(4)), (0,len(b))))%len(b) # metadata lie at the ends
            b[i] = b[i]^(1<<int(rng.integers(8))) if rng.random()<.6 else int(rng.choice([0,1,127,128,255]))
        bad.write_bytes(b)
        signal.alarm(30) # a hang ends the process
        try:
            look(JetStore(bad, mmap=bool(k%2)) if path.name.endswith('.jets.h5') else pack(bad, path.with_name('out'), overwrite=True, progress=False))
            seen['read'] += 1
        except JetbookError as e:
            assert e.what and (e.found is not None or e.do is not None)
            seen['refused'] += 1
    return seen

@pytest.mark.parametrize('kind,n', [('store',300), ('dense',60), ('gzip',150), ('parquet',150)])
def test_flipped_bytes(toys, tmp_path, kind, n):
    "Seeded flips: an error of ours, or arrays that are in range; never another error, a crash or a hang"
    few = toys[:6]
    if kind=='store': p = few.save(tmp_path/'a.jets.h5')
    elif kind=='parquet': p = write_parquet(tmp_path/'a.parquet', few.images().numpy(), 3, y=few.columns['y'], pt=few.columns['pt'])
    else: p = few.to_dense(tmp_path/'a.h5', **(dict(chunks=(1,125,125,3), compression='gzip') if kind=='gzip' else {}))
    seen,_ = survives(flip, p, 1, n)
    assert seen['read'] and seen['refused'] and seen.total()==n

def test_names_that_a_terminal_would_obey(dense_file):
    "Are refused before anything is packed"
    refused(packs(edit(dense_file, lambda f: f.create_dataset('a\x1b[2J', data=np.arange(40.0)))), 'a\\x1b[2J', 'rename it')


def same_arrays(a, b):
    "The same names, types and bits"
    arrays = [
        {**{f'{k}/{i}': o for k, e in s.entries.items() for i, o in enumerate(e)}, **s.columns} for s in (a, b)
    ]
    return list(arrays[0]) == list(arrays[1]) and all(
        v.dtype == w.dtype and v.tobytes() == w.tobytes() for v, w in zip(*(o.values() for o in arrays))
    )


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_flipped_bit_is_found(toys, tmp_path, dtype):
    "By `verify`, and before anything is trained: 150 copies of a store, each with another bit flipped"
    from jetbook.data.loaders import JetDL

    path = toys[:6].save(tmp_path / 'a.jets.h5', value_dtype=dtype)
    right, raw, rng = JetStore(path), path.read_bytes(), np.random.default_rng(0)
    seen = Counter()
    for k in range(150):
        b = bytearray(raw)
        b[rng.integers(len(b))] ^= 1 << int(rng.integers(8))
        bad = tmp_path / f'bad{k}.jets.h5'
        bad.write_bytes(b)
        for fn in (verify, lambda p: JetDL(JetStore(p, mmap=bool(k % 2)))):
            try:
                fn(bad)
            except StoreError as e:
                seen['found'] += 1
                assert e.do
            except DataError:
                seen['found'] += 1
            else:
                seen['harmless'] += 1
                store = JetStore(bad)
                assert same_arrays(store, right) and (store.source, store.layout) == (right.source, right.layout)
        bad.unlink()
    assert seen["found"] > 100, seen


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('mmap', [False, True])
def test_a_store_with_a_pixel_that_is_no_number(store_file, value, mmap):
    "Is refused when it is opened, even if its checksum is right"
    import jetbook.data.hdf5 as h

    def spoil(f):
        v = f['ECAL/value'][:]
        v[[5, -1]] = value
        del f['ECAL/value']
        h.write_array(f['ECAL'], 'value', v)

    bad = edit(store_file, spoil)
    refused(lambda: JetStore(bad, mmap=mmap), 'A pixel of ECAL is not finite', 'in jet 0', kind=StoreError)
    refused(lambda: verify(bad), 'A pixel of ECAL is not finite', kind=StoreError)


def test_a_column_without_a_checksum(store_file):
    "May be added by other programs"
    with h5py.File(store_file, 'r+') as f:
        f['score'] = np.arange(40.0)
    assert verify(store_file)['checksums'] == 12 and len(JetStore(store_file).check()) == 40
    with h5py.File(store_file, 'r+') as f:
        f['pt'][3] = 7
    refused(lambda: JetStore(store_file), 'pt is damaged', kind=StoreError)


def cut_while_mapped(path):
    "Open a store, cut its file, and use it; what the error says"
    s = JetStore(path, mmap=True)
    same, few = s.select(channels='ECAL'), s[:3]
    os.truncate(path, 4096)
    said = []
    for fn in (lambda: s.images([35]), lambda: s[35], lambda: s.clouds([35]), lambda: s[30:], lambda: same.images([35])):
        try:
            fn()
        except StoreError as e:
            said.append(str(e))
    assert few.images().shape[0] == 3  # a copy in memory
    return said


def test_a_mapped_file_that_is_cut_while_in_use(store_file):
    "Is an error; the system would end the process"
    said, _ = survives(cut_while_mapped, store_file)
    assert len(said) == 5 and all('was cut while in use' in o and 'Do: ' in o for o in said)


@pytest.mark.parametrize('how', ['delete', 'replace'])
def test_a_mapped_file_that_is_deleted_or_replaced(toys, store_file, how):
    "Is still there for those who have it open"
    s = JetStore(store_file, mmap=True)
    store_file.unlink() if how == 'delete' else toys[:2].save(store_file)
    assert (s.images([35]) == toys.images([35])).all()


# --- parquet ----------------------------------------------------------------------------------------------------------

def test_parquet_contents(tmp_path, toys):
    import pyarrow as pa
    x,p = toys[:6].images().numpy(),tmp_path/'a.parquet'
    import pyarrow.parquet as pq
    pq.write_table(pa.table(dict(pixels=nested(x))), p); refused(packs(p), 'No X_jets', 'Found: pixels')
    for ragged in ([[[[1.,2.]]],[[[1.]]]], [[[[1.,2.]]],None], [[[[1.,None]]]], [[[[1.,2.],None]]], [[]], [[[[]]]], [None]*3): refused(packs(write_parquet(p, pa.array(ragged))), 'X_jets')
    for flat in (pa.array([1.,2.]), pa.array([[1.],[2.]]), pa.array(['a','b']), pa.array([{'a':1}]), pa.array([[[['a']]]]), pa.array([[[[[[1.]]]]]])): refused(packs(write_parquet(p, flat)), 'X_jets')
    refused(packs(write_parquet(p, nested(x[:0]))), 'no jets')
    refused(packs(write_parquet(p, nested(x[:,:2]))), 'wrong shape')
    refused(packs(write_parquet(p, nested(x), y=[0,1,2,0,1,0])), 'Labels in column y')
    refused(packs(write_parquet(p, nested(x), pt=[1.,None,1,1,1,1])), 'pt')
    for v,word in ((np.nan,'not a number'),(-1,'negative'),(np.inf,'infinite')):
        z = x.copy(); z[4,1,2,3] = v
        refused(packs(write_parquet(p, nested(z))), word, 'ECAL', 'jet 4')
    late = pa.concat_arrays([nested(x), nested(x[:2,:,:,:124])])
    refused(packs(write_parquet(p, late, 6)), 'different sizes')
    write_parquet(p, x, name=['a']*6); assert open_source(p).columns=={} # text is not a number a jet

def bomb(path):
    "How `pack` refuses `path` where it may use 4 GiB of addresses; the MiB it took"
    def _fn():
        try: pack(path, path.with_name('out'), progress=False)
        except JetbookError as e: return str(e)
    said,peak = survives(_fn, mb=4096)
    assert said, 'was not refused'
    return said,peak

def write_runs(path, lengths, **cols):
    "Parquet whose jets are 1 x 1 x `lengths` equal numbers: pyarrow writes them as a few runs"
    import pyarrow as pa, pyarrow.parquet as pq
    one,ends = np.arange(len(lengths)+1, dtype=np.int32),np.concatenate([[0],np.cumsum(lengths)]).astype(np.int32)
    a = pa.ListArray.from_arrays(ends, pa.array(np.zeros(ends[-1],np.float32)))
    for _ in range(2): a = pa.ListArray.from_arrays(one, a)
    pq.write_table(pa.table(dict(X_jets=a, **cols)), path, compression='zstd', data_page_size=2**30)
    assert path.stat().st_size < 2**16
    return path

MANY = 4*10**7 # equal numbers: 160 MB as float32

@pytest.fixture(scope='module')
def runs_file(tmp_path_factory): return write_runs(tmp_path_factory.mktemp('runs')/'a.parquet', [MANY])

def test_parquet_of_equal_numbers(runs_file):
    said,peak = bomb(runs_file)
    assert 'X_jets' in said and f'{MANY:,}' in said and peak < 100

def test_parquet_that_lies(runs_file, tmp_path):
    "Its metadata declare the numbers of a CMS jet, its one page unpacks to far more"
    import pyarrow.parquet as pq
    raw,p = runs_file.read_bytes(),tmp_path/'a.parquet'
    def varint(n, size): return bytes((n*2>>7*i)&127 | (128 if i<size-1 else 0) for i in range(size)) # thrift's, zigzag
    foot = len(raw)-8-int.from_bytes(raw[-8:-4],'little')
    p.write_bytes(raw[:foot] + raw[foot:].replace(varint(MANY,4), varint(46875,4)))
    assert pq.ParquetFile(p).metadata.row_group(0).column(0).num_values==46875
    said,peak = bomb(p)
    assert 'unpacks to too much' in said and '46,875' in said and peak < 100

def test_parquet_of_one_giant_among_small(tmp_path):
    "The mean is that of a CMS jet, but one jet has nearly all"
    said,peak = bomb(write_runs(tmp_path/'a.parquet', [46875*1500-1499]+[1]*1499, pt=np.random.default_rng(0).random(1500)))
    assert 'unpacks to too much' in said and peak < 100
    refused(packs(write_runs(tmp_path/'a.parquet', [46875*15-14]+[1]*14), channels=['a']), 'different sizes')

def test_parquet_of_more_jets_than_bytes(tmp_path):
    p = write_parquet(tmp_path/'a.parquet', np.zeros((10**6,1,1,1),'f4'), 10**6)
    assert p.stat().st_size < 10**6
    refused(lambda: pack(p, tmp_path/'b', channels=['a'], progress=False), 'More jets than bytes')

# --- gzip that unpacks to far more ------------------------------------------------------------------------------------

def gzip_bomb(mb):
    "A zlib stream of `mb` MiB of zeros, without its end"
    c = zlib.compressobj(9); head = c.flush(zlib.Z_FULL_FLUSH)
    return head + (c.compress(bytes(2**20)) + c.flush(zlib.Z_FULL_FLUSH))*mb

@pytest.mark.parametrize('n,mb', [(1,1500), (1000,1500)])
def test_gzip_chunk_that_unpacks_to_more(tmp_path, n, mb):
    "1.5 MB in the file, 1.5 GB in memory; one with small chunks, one with chunks of 180 MB"
    p = tmp_path/'a.h5'
    with h5py.File(p,'w') as f:
        d = f.create_dataset('X_jets', (n,125,125,3), 'f4', chunks=(n,125,125,3), compression='gzip')
        d.id.write_direct_chunk((0,0,0,0), gzip_bomb(mb))
        for k in ('y','pt','m0'): f[k] = np.zeros(n)
    assert p.stat().st_size < 2**21
    said,peak = bomb(p)
    assert 'unpack to more than they should' in said and peak < 100

def test_gzip_within_gzip(tmp_path):
    with h5py.File(tmp_path/'a.h5','w') as f:
        pl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pl.set_chunk((1,125,125,3)); pl.set_deflate(9); pl.set_deflate(9)
        d = h5py.Dataset(h5py.h5d.create(f.id, b'X_jets', h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((1,125,125,3)), pl))
        d[:] = 0
        for k in ('y','pt','m0'): f[k] = np.zeros(1)
    refused(packs(tmp_path/'a.h5'), 'compression within compression')

def test_bomb_in_a_column_of_a_store(store_file):
    def _fn(f):
        del f['pt']
        f.create_dataset('pt', (40,), 'f4', chunks=(40,), compression='gzip').id.write_direct_chunk((0,), gzip_bomb(1500))
    p = edit(store_file, _fn)
    def _open():
        try: JetStore(p)
        except JetbookError as e: return str(e)
    said,peak = survives(_open, mb=4096)
    assert 'unpack to more' in said and peak < 100


@pytest.fixture
def corrected_file(store_file, tmp_path):
    "A store whose jet 3 has a HCAL pixel of its own"
    s = JetStore(store_file)
    pixels = np.flatnonzero(s.images([3])[0, 2].numpy().ravel())[:1]
    fix = (np.repeat([0, 1], [4, 37]), pixels, [7.0])
    return s._replace(corrections=dict(HCAL=tuple(map(np.asarray, fix, ('i8', 'u2', 'f4'))))).save(tmp_path / 'c.jets.h5')


@pytest.mark.parametrize('mmap', [False, True])
def test_corrections_that_are_wrong(corrected_file, mmap):
    "Are refused as wrong entries are"
    opens = lambda fn: lambda: JetStore(edit(corrected_file, fn), mmap=mmap)
    assert verify(corrected_file)['checksums'] == 15 and JetStore(corrected_file, mmap).corrections['HCAL'][2] == 7
    where = 'HCAL/corrections/'
    for name, value, text in (
        ('pixel', np.array([15625], 'u2'), 'outside the image'),
        ('pixel', np.zeros(2, 'u2'), 'unequal arrays'),
        ('pixel', np.zeros(1, 'i4'), 'wrong types'),
        ('value', np.array([np.nan], 'f4'), 'not finite'),
        ('value', np.float32(1), 'not flat'),
        ('offsets', np.zeros(41, 'i8'), 'does not divide'),
        ('offsets', np.array([0, 1]), 'wrong length'),
        ('offsets', np.repeat([0, 2**62, 1], [4, 1, 36]), 'does not divide'),
    ):
        refused(opens(replace(where + name, value)), 'HCAL/corrections', text, kind=StoreError)

    def links(f):
        del f['HCAL/corrections']
        f['HCAL/corrections'] = h5py.SoftLink('/nowhere')

    refused(opens(links), 'HCAL/corrections')
    for fn in (lambda f: f.pop('HCAL/corrections'), lambda f: f.move('HCAL/corrections', 'HCAL/others')):
        refused(opens(fn), 'header', kind=StoreError)
    refused(opens(lambda f: f.attrs.pop('header_crc32')), 'header_crc32 is missing', kind=StoreError)
    refused(opens(replace(where + 'pixel', [[1]])), 'HCAL/corrections')

    def flip(f):
        f[where + 'value'][0] = 8

    refused(opens(flip)().check, 'HCAL/corrections/value is damaged', kind=StoreError)


def test_a_header_that_was_changed(store_file):
    "Is refused, though it fits the arrays; without a checksum of it, a file is an older one"
    for name, value in (('layout', b'tau'), ('source', b'elsewhere'), ('cell', 0.02), ('created_by', b'x'), ('channels', np.array(['ECAL', 'Tracks', 'HCAL'], 'S'))):
        changed = edit(store_file, _attr('/', name, np.bytes_(value) if isinstance(value, bytes) else value))
        for fn in (lambda: JetStore(changed), lambda: verify(changed)):
            refused(fn, 'The header of edited.jets.h5 is damaged', kind=StoreError)
    bare = edit(store_file, _attr('ECAL/value', 'crc32', None))
    for fn in (lambda: JetStore(bare), lambda: verify(bare)):
        refused(fn, 'ECAL/value has no checksum', kind=StoreError)
    old = edit(store_file, _attr('/', 'header_crc32', None))
    assert len(JetStore(old)) == 40 and verify(old)['checksums'] == 12
    for value in (0, 1.5, 'x', [1, 2], np.uint64(3), h5py.Empty('u4')):
        refused(lambda: JetStore(edit(store_file, _attr('/', 'header_crc32', value))), 'header', kind=StoreError)
        refused(lambda: JetStore(edit(store_file, _attr('pt', 'crc32', value))), '/pt: the attribute crc32 is wrong', kind=StoreError)
        refused(lambda: verify(edit(store_file, _attr('ECAL/pixel', 'crc32', value))), '/ECAL/pixel: the attribute crc32 is wrong', kind=StoreError)


def test_a_changed_store_that_is_saved_again(store_file, tmp_path):
    "Has a header of its own"
    s = JetStore(store_file)
    s.cell = 0.03
    s.source = 'elsewhere'
    again = JetStore(s.save(tmp_path / 'again.jets.h5')).check()
    assert (again.cell, again.source) == (0.03, 'elsewhere')
