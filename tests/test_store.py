"Stores in memory: what is refused, every way to pick jets, images on any path, ragged rows"
import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as eq, test_fail as fails

from jetbook.data.store import ConfigError, DataError, JetbookError, JetStore, MissingExtra, Ragged, StoreError, toy_jets
from jetbook.data.store import _images_torch

@pytest.fixture
def tiny():
    "Three jets of 10x10 pixels: two lit ECAL pixels, one HCAL tower, nothing"
    return JetStore.from_entries(dict(ECAL=([0, 2, 2, 2], [7, 31], [.5, .25]), HCAL=([0, 0, 1, 1], [3], [1.])),
                                 height=10, width=10, upsample=dict(HCAL=5), columns=dict(y=[0, 1, 1]))

def same(a, b): np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)

# --- errors -----------------------------------------------------------------------------------------------------------

def test_errors_are_one_family():
    for o in (DataError, StoreError, ConfigError, MissingExtra): assert issubclass(o, JetbookError)
    e = JetbookError('a', 1, 2, 'b')
    eq(str(e), 'a. Found: 1. Expected: 2. Do: b.')
    eq(str(copy.copy(e)), str(e))
    sent = pickle.loads(pickle.dumps(DataError('a', do='b'))) # as between processes
    eq((type(sent), str(sent), sent.do), (DataError, 'a. Do: b.', 'b'))

ESCAPES = 'jets\x1b[2J\x1b]52;c;aGk=\x07\nverified: sound \u202ethgir'


def test_control_characters_do_not_reach_the_terminal(tiny, capsys):
    "Of errors, of sources and of the names of channels and columns"
    from jetbook.data.store import printable

    shown = [
        str(JetbookError(ESCAPES, found=ESCAPES, expected=[ESCAPES], do=ESCAPES)),
        repr(JetStore.from_entries(tiny.entries, 10, 10, tiny.upsample, source=ESCAPES)),
        repr(tiny._replace(source=ESCAPES)).replace('\n', ''),
        printable(ESCAPES),
    ]
    for text in shown:
        assert 'verified: sound' in text
        assert not any(ord(c) < 32 and c != '\n' or c == '\u202e' for c in text), text
    assert '\n' not in shown[0] and '\\nverified' in shown[0]
    assert printable('\udc80').encode() == b'\\udc80'  # a file name that is not UTF-8 can be printed too
    assert printable(printable(ESCAPES)) == printable(ESCAPES)
    entries = dict(a=([0, 1], [3], [1.0]))
    fails(lambda: JetStore.from_entries(entries, 5, 5, columns={ESCAPES: [1]}), contains='cannot hold')
    fails(lambda: JetStore.from_entries({ESCAPES: entries['a']}, 5, 5), contains='cannot hold')


def test_messages_stay_short():
    "Where thousands of columns are listed"
    names = [f'column_{i}' for i in range(5000)]
    assert len(str(JetbookError('No such column', found='x', expected=', '.join(names)))) < 1200
    many = JetStore.from_entries(dict(a=([0, 1], [3], [1.0])), 5, 5, columns={k: [1.0] for k in names})
    assert len(repr(many)) < 1000 and 'and 4,970 more' in repr(many)


@pytest.mark.parametrize('wrong,why', [
    (dict(entries=dict(a=([0, 1], [25], [1.]))), 'outside the image'), (dict(entries=dict(a=([0, 2], [3], [1.]))), 'does not divide'),
    (dict(entries=dict(a=([0, 2, 1], [3], [1.]))), 'does not divide'), (dict(entries=dict(a=([0, 1], [3, 4], [1.]))), 'unequal'),
    (dict(entries=dict(a=([0, 1], [3], [1.]), b=([0, 0, 0], [], []))), 'wrong length'), (dict(upsample=dict(a=2)), 'tile'),
    (dict(columns=dict(y=[2])), 'other than 0 and 1'), (dict(columns=dict(signal=[-1])), 'other than 0 and 1'),
    (dict(columns=dict(pt=[2, 3])), 'one number per jet'), (dict(columns=dict(pt=['a'])), 'not numeric'),
    (dict(columns={'a/b':[1]}), 'cannot hold'), (dict(entries={}), 'channel'), (dict(height=500, width=500), '65,536')])
def test_stores_that_are_refused(wrong, why):
    fails(lambda: JetStore.from_entries(**{**dict(entries=dict(a=([0, 1], [3], [1.])), height=5, width=5), **wrong}), contains=why)

# --- images -----------------------------------------------------------------------------------------------------------

def test_images(tiny):
    eq(len(tiny), 3)
    eq(tiny.images([0]).flatten().nonzero()[:, 0].tolist(), [7, 31])
    eq(tiny.images([1])[0, 1].sum().item(), 25.)
    same(tiny.images([-1]), tiny.images([2]))
    same(tiny.images(np.array([True, False, True])), tiny.images([0, 2]))
    same(tiny.images(slice(1, None)), tiny.images([1, 2]))
    same(tiny.images(torch.tensor([2, 0])), tiny.images([2, 0]))
    same(tiny.images(), tiny.images([0, 1, 2]))
    for bad, why in (([3], '0 to 2'), ([-4], '0 to 2'), ([.5], 'by index'), ([[0]], 'by index'), (np.array([True, False]), 'by index')):
        fails(lambda: tiny.images(bad), contains=why)

def test_buffers(tiny):
    fails(lambda: tiny.images([0, 1], out=tiny.buffer(1)), contains='does not fit')
    fails(lambda: tiny.images([0], out=toy_jets(2).buffer(1)), contains='does not fit')
    buf = tiny.buffer(4)
    tiny.images([0, 1], out=buf)
    buf.tensor.fill_(9)
    buf.dirty = True # as after an error half-way
    same(tiny.images([0], out=buf), tiny.images([0]))

def as_torch(store):
    "`store` with entries as tensors, as on an accelerator"
    return store._replace(entries={k:(torch.tensor(o), torch.tensor(p.astype(np.int32)), torch.tensor(v)) for k, (o, p, v) in store.entries.items()})

def test_torch_gives_the_same(tiny):
    toy = toy_jets()
    same(_images_torch(as_torch(tiny), torch.tensor([1, 2, 0, 1])), tiny.images([1, 2, 0, 1]))
    same(_images_torch(as_torch(toy), torch.tensor([5, 9])), toy.images([5, 9]))
    for a, b in zip(as_torch(toy)._pick(np.array([5, 9])).entries['HCAL'], toy.select([5, 9]).entries['HCAL']): np.testing.assert_array_equal(a.numpy(), b)

def test_kernels_compile_once_from_many_threads():
    "Four threads make the first images of a fresh process"
    code = '''
from concurrent.futures import ThreadPoolExecutor
from jetbook.data.store import toy_jets
s = toy_jets(16)
with ThreadPoolExecutor(4) as pool: x = list(pool.map(lambda i: s.images([i]), range(16)))
assert all((a == s.images([i])).all() for i, a in enumerate(x)) and s.clouds().offsets[-1] > 0
print('same')'''
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip()=='same', r.stderr

# --- the width of a pixel -----------------------------------------------------------------------------------------------

def test_cells(tiny, tmp_path):
    "A store's own, saved with it, the layout's for images of the layout's size, else unknown"
    entries = dict(a=([0, 1], [3], [1.0]))
    eq((toy_jets(2).cell, toy_jets(2, 'wqcd').cell, tiny.cell), (0.0174, 0.1, None))
    eq(JetStore.from_entries(entries, 25, 25, layout='cms').cell, None)  # not the width of CMS's pixels
    own = JetStore.from_entries(entries, 25, 25, layout='lagan', cell=0.05)
    eq((own.cell, own[:1].cell, own.select(channels='a').cell), (0.05,) * 3)
    eq(JetStore(own.save(tmp_path / 'own.jets.h5')).cell, 0.05)
    eq(JetStore(tiny.save(tmp_path / 'tiny.jets.h5')).cell, None)
    tiny.cell = 0.2
    eq((tiny.cell, tiny.known_cell(), pickle.loads(pickle.dumps(tiny)).cell), (0.2,) * 3)
    for wrong in (0, -0.1, float('nan'), 'wide', 100, True, [0.1]):
        fails(lambda: setattr(tiny, 'cell', wrong), contains='No such width')
    import h5py

    with h5py.File(tmp_path / 'own.jets.h5', 'r+') as f:
        f.attrs['cell'] = -1.0
    fails(lambda: JetStore(tmp_path / 'own.jets.h5'), contains='the attribute cell is wrong')


def test_a_mass_needs_the_width_of_a_pixel(tiny):
    "It was 1.4e7 GeV for 118, without a word"
    from jetbook.data.observables import jet_mass, jet_profile, observables, particles

    assert 'width of a pixel: unknown' in repr(tiny) and 'unknown' not in repr(toy_jets(2)).split('source')[0]
    for fn in (observables, jet_profile, particles):
        fails(lambda: fn(tiny), contains="store.cell = 0.1")
    assert jet_mass(particles(tiny, cell=0.1))[0] > 0
    tiny.cell = 0.1
    same(observables(tiny).mass, jet_mass(particles(tiny, cell=0.1)))
    tiny.cell = None
    tiny.show(0)  # in pixels


# --- picking ----------------------------------------------------------------------------------------------------------

def test_select(tiny):
    same(tiny.select([2, 1]).images(), tiny.images([2, 1]))
    eq(tiny.select([2, 1], channels='HCAL').images().sum((1, 2, 3)).tolist(), [0., 25.])
    assert tiny.select(channels=['ECAL']).entries['ECAL'][1] is tiny.entries['ECAL'][1] # nothing is copied
    fails(lambda: tiny.select(channels='Ecal'), contains='some of ECAL, HCAL')
    eq(tiny[1]['y'], 1)
    eq(len(tiny[1:]), 2)
    fails(lambda: tiny[3], contains='No jet')

def test_a_store_is_a_sequence(tiny):
    "As a list of jets would be"
    import operator

    eq([jet['y'] for jet in tiny], [0, 1, 1])
    eq([i for i, jet in enumerate(tiny)], [0, 1, 2])
    eq([jet['y'] for jet in reversed(tiny)], [1, 1, 0])
    eq([(a['y'], b) for a, b in zip(tiny, 'xyz')], [(0, 'x'), (1, 'y'), (1, 'z')])
    eq(max(jet['image'].sum().item() for jet in tiny), 25.0)
    eq(list(tiny[:0]), [])
    for one in (1, np.int64(1), np.array(1), torch.tensor(1), np.uint8(1), -2):
        same(tiny[one]['image'], tiny.images([1])[0])
    for several in ([1], np.array([1]), torch.tensor([1]), slice(1, 2), np.array([False, True, False])):
        assert isinstance(tiny[several], JetStore) and len(tiny[several]) == 1
    for beyond in (3, -4, torch.tensor(3), [0, 7]):
        with pytest.raises(IndexError) as e:
            tiny[beyond]
        assert isinstance(e.value, DataError) and '0 to 2' in str(e.value)
    with pytest.raises(IndexError):
        tiny[:0][0]
    fails(lambda: tiny['y'], contains='by index')
    fails(lambda: tiny[1.0], contains='by index')
    eq(operator.length_hint(tiny), 3)


def test_a_column_named_image(tiny):
    s = tiny._replace(columns=dict(image=np.arange(3)))
    eq(s[1]['image'].shape, (2, 10, 10))
    eq(s.columns['image'].tolist(), [0, 1, 2])


def test_numbers_of_another_byte_order():
    "As HDF5 and FITS files of other machines hold them"
    import pandas as pd

    values = dict(y=np.array([0, 1], '>i2'), pt=np.array([1.5, 2], '>f8'), m=np.array([1, 2], np.longdouble))
    s = JetStore.from_entries(dict(a=(np.array([0, 1, 1], '>i8'), np.array([3], '>u2'), np.array([1], '>f4'))), 5, 5, columns=values)
    assert all(v.dtype.isnative and v.dtype.itemsize <= 8 for v in s.columns.values())
    eq(torch.as_tensor(s.columns['pt']).tolist(), [1.5, 2])
    eq(pd.DataFrame(s.columns).groupby('y').pt.sum().tolist(), [1.5, 2])
    eq(s.images([0]).sum().item(), 1)


@pytest.mark.parametrize('code', [
    "JetStore('{path}')", 'toy_jets(40).dataloaders(bs=2)', "toy_jets(2).to_dense('{out}')", "toy_jets(2).save('{out}')",
    'toy_jets(2).check()', 'import copy; copy.deepcopy(toy_jets(2)).check()'])
def test_methods_of_other_chapters_need_no_import(code, tmp_path):
    toy_jets(4).save(tmp_path / 'a.jets.h5')
    code = code.format(path=tmp_path / 'a.jets.h5', out=tmp_path / 'out.h5')
    code = f'from jetbook.data.store import JetStore, toy_jets; {code}; print("well")'
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == 'well', r.stderr


def test_methods_that_are_none(tiny):
    for name, near in (('dataloader', 'dataloaders'), ('image', 'images'), ('to_dens', 'to_dense'), ('zzz', 'no zzz')):
        with pytest.raises(AttributeError, match=near):
            getattr(tiny, name)
    assert not hasattr(tiny, '__array__') and not hasattr(JetStore.__new__(JetStore), 'entries')


def test_kernels_where_nothing_can_be_cached(tmp_path):
    "A container whose installation and home folder are read-only"
    code = '''
import numba.core.caching as c
def no(*args): raise RuntimeError("cannot cache function: no locator available")
c.CacheImpl.__init__ = no
from jetbook.data.store import toy_jets
assert toy_jets(2).images().sum() > 0
import jetbook.data.observables, jetbook.graphs.edges, jetbook.graphs.batches, jetbook.taggers.gnn
print('well')'''
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == 'well', r.stderr

# --- clouds -----------------------------------------------------------------------------------------------------------

def test_clouds(tiny):
    c = tiny.clouds([1, 0])
    for k, want in dict(row=[7, 0, 3], col=[7, 7, 1], channel=[1, 0, 0], value=[1, .5, .25], offsets=[0, 1, 3]).items():
        np.testing.assert_array_equal(getattr(c, k), want)
    eq(len(tiny.clouds([]).row), 0)

def test_clouds_hold_all_of_the_intensity():
    toy = toy_jets()
    c = toy.clouds()
    x = toy.images().double()
    for ch, name in enumerate(toy.channels):
        got = c.value[c.channel==ch].sum(dtype=np.float64)*toy.upsample[name]**2
        np.testing.assert_allclose(got, x[:, ch].sum().item(), rtol=1e-12)

def test_ragged():
    two = Ragged([0, 2, 2, 3], dict(cell=.1), pt=np.array([5., 3., 4.]))
    eq((len(two), two.cell), (3, .1))
    same(two.counts, np.array([2, 0, 1]))
    same(two.jet, np.array([0, 0, 2]))
    same(two.sum(two.pt), np.array([8., 0., 4.]))
    same(two.select([2, 0, 2]).pt, np.array([4., 5., 3., 4.]))
    same(two.keep(two.pt>3.5).counts, np.array([1, 0, 1]))
    same(two.replace(pt=2*two.pt).pt, 2*two.pt)
    eq(two.select([]).counts.tolist(), [])
    fails(lambda: Ragged([0, 2], pt=np.zeros(3)), contains='pt does not fit the offsets')

# --- what is shown ----------------------------------------------------------------------------------------------------

def test_reprs(tiny):
    assert '5x5 towers' in repr(tiny) and 'smaller than dense float32 by a factor of' in repr(tiny)
    assert '<table' in tiny._repr_html_()
    eq(tiny.summary().loc['HCAL', 'lit_pixels_per_jet'], 25/3)
    assert '<b>' not in tiny._replace(source='<b>')._repr_html_().split('<table')[0]

def test_toy_jets():
    same(toy_jets(8).images(), toy_jets(8).images())
    assert not torch.equal(toy_jets(8).images(), toy_jets(8, seed=1).images())
    eq(len(toy_jets(0)), 0)
    eq(tuple(toy_jets(9, 'wqcd').images().shape), (9, 1, 25, 25))
    fails(lambda: toy_jets(kind='x'), contains='wqcd')
