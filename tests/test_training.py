"Files of a training that are forged or cut short, and what a resumed training puts back"
import json, pickle, struct

import numpy as np, pytest, torch
from torch import nn

from jetbook.data.store import ConfigError, DataError
from jetbook.train.training import SCHEDULES, building, find_lr, flatten_tree, from_json, header_tensors, load_tensors, read_json, save_tensors, to_json, toy_learner, unflatten_tree, write_json

TENSOR = dict(dtype='F32', shape=[2], data_offsets=[0, 8])

def forge(path, header, body=b''):
    h = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(h)) + h + body)
    return path

def test_a_file_without_checksums_is_refused(tmp_path):
    f = forge(tmp_path/'f.safetensors', dict(a=TENSOR), bytes(8))
    for read in (load_tensors, header_tensors):
        with pytest.raises(DataError, match='no checksums'): read(f)
    for crc in ('', '[]', '{}', '{"tensors": 3, "metadata": 4}', '{"tensors": {"a": "x"}, "metadata": null}', '['*10_000):
        with pytest.raises(DataError, match='damaged'): load_tensors(forge(f, dict(__metadata__=dict(crc32=crc), a=TENSOR), bytes(8)))

def test_every_flipped_bit_is_found(tmp_path):
    "Of the numbers, the names, the metadata and the checksums themselves"
    f = tmp_path/'f.safetensors'
    tensors = dict(a=torch.tensor([1.5, -2]), b=torch.tensor([True]), c=torch.tensor(3), d=torch.zeros(0, 2))
    save_tensors(f, tensors, dict(note='hello'))
    sound,passed = f.read_bytes(),[]
    for i in range(len(sound)*8):
        data = bytearray(sound)
        data[i//8] ^= 1<<i%8
        f.write_bytes(data)
        try: back = load_tensors(f)
        except DataError: continue
        same = back[1]=={'format': 'pt', 'note': 'hello'} and all(torch.equal(back[0][k], v) for k,v in tensors.items()) # another byte of a True is True
        if not same: passed.append(i)
    assert not passed

def test_types_and_shapes_come_back_and_the_bytes_are_the_same(tmp_path):
    tensors = dict(h=torch.randn(3).half(), b=torch.randn(2, 2).bfloat16(), none=torch.zeros(3, 0), one=torch.tensor(2.), c=torch.randn(2, dtype=torch.complex64), i=torch.arange(3), y=torch.tensor([True, False]))
    written = set()
    for _ in range(8):
        save_tensors(tmp_path/'t.safetensors', tensors, dict(z='1', a='ü\n"', k=''))
        written.add((tmp_path/'t.safetensors').read_bytes())
    back,meta = load_tensors(tmp_path/'t.safetensors')
    shapes = header_tensors(tmp_path/'t.safetensors')[0]
    assert len(written)==1 and meta=={'format':'pt', 'z':'1', 'a':'ü\n"', 'k':''}
    for k,v in tensors.items():
        assert torch.equal(back[k], v) and back[k].dtype==v.dtype
        assert shapes[k].device.type=='meta' and (shapes[k].shape, shapes[k].dtype)==(v.shape, v.dtype)

def test_what_is_larger_than_its_weights_is_not_built():
    "Not one tensor of it, and not one layer after another"
    weights = nn.Linear(4, 4).state_dict()
    made = []
    def layers(n):
        for _ in range(n): made.append(nn.Linear(2, 2))
    too_large = [lambda: nn.Linear(10**6, 10**6), lambda: torch.zeros(10**5, 10**5), lambda: torch.zeros(3).new_ones(10**10), lambda: torch.randn(2, generator=torch.Generator()).repeat(10**10),
                 lambda: torch.arange(10**12), lambda: nn.Embedding(10**9, 64), lambda: nn.GRU(10**5, 10**5), lambda: layers(10**7), lambda: [nn.BatchNorm1d(10**5) for _ in range(100)]]
    for f in too_large:
        with pytest.raises(DataError, match='larger model than the weights'), building(weights): f()
    assert len(made) < 1000
    with building(weights): assert nn.Linear(4, 4)(torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).shape==(3, 4)
    layers(2000) # afterwards, all is as before
    assert torch.zeros(5000, 5000).shape==(5000, 5000)

def test_a_model_is_the_same_when_it_is_built_within_bounds():
    torch.manual_seed(1); a = toy_learner().model.state_dict()
    torch.manual_seed(1)
    with building(a): b = toy_learner().model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('change', [dict(shape=[2**40]), dict(data_offsets=[0, 2**40]), dict(shape=[-2]), dict(shape=[2**62, 4]), dict(dtype='pickle'), dict(data_offsets=[8, 0])])
def test_a_header_that_lies_is_refused(change, tmp_path):
    f = forge(tmp_path/'f.safetensors', dict(a={**TENSOR, **change}), bytes(8))
    with pytest.raises(DataError, match='not a sound safetensors file'): load_tensors(f)

@pytest.mark.parametrize('data', [struct.pack('<Q', 2**60)+bytes(64), struct.pack('<Q', 5)+b'{"a":', struct.pack('<Q', 64)+b'x'*64, pickle.dumps(dict(a=1)), b''])
def test_what_is_no_safetensors_file_is_refused(data, tmp_path):
    (tmp_path/'f.safetensors').write_bytes(data)
    with pytest.raises(DataError, match='not a sound'): load_tensors(tmp_path/'f.safetensors')

def test_a_file_cut_short_is_refused(tmp_path):
    with pytest.raises(DataError, match='not a sound'): load_tensors(forge(tmp_path/'f.safetensors', dict(a=TENSOR), bytes(4)))
    with pytest.raises(DataError, match='No g.safetensors'): load_tensors(tmp_path/'g.safetensors')

def test_tied_weights_are_saved_twice(tmp_path):
    w = torch.arange(4.)
    save_tensors(tmp_path/'t.safetensors', dict(a=w, b=w[:2], c=w.view(2, 2).t()), dict(note='x'))
    tensors,meta = load_tensors(tmp_path/'t.safetensors')
    assert tensors['b'].tolist()==[0, 1] and tensors['c'].tolist()==[[0, 2], [1, 3]] and meta['note']=='x'

@pytest.mark.parametrize('text,why', [('[1]', 'holds no settings'), ('{', 'not JSON'), ('['*100_000, 'not JSON')])
def test_json_that_is_no_object_is_refused(text, why, tmp_path):
    (tmp_path/'c.json').write_text(text)
    with pytest.raises(DataError, match=why): read_json(tmp_path/'c.json')

def test_json_has_a_limit(tmp_path):
    write_json(tmp_path/'c.json', dict(a='x'*100))
    with pytest.raises(DataError, match='too large'): read_json(tmp_path/'c.json', limit=50)
    with pytest.raises(DataError, match='is this a run folder'): read_json(tmp_path/'none.json')

def test_numbers_that_json_lacks_come_back():
    o = dict(a=[np.float32(1.5), (2, None)], inf=float('inf'), low=float('-inf'), nan=float('nan'), n=np.int64(3))
    back = from_json(json.loads(json.dumps(to_json(o), allow_nan=False)))
    assert back['a']==[1.5, [2, None]] and back['inf']==float('inf') and back['low']==-float('inf') and back['nan']!=back['nan'] and back['n']==3

def test_a_tree_with_every_kind_of_leaf_comes_back():
    tree = {0:dict(step=3, avg=torch.randn(2), lr=.1), 'x':[(1, None), True, np.arange(3.), np.array([2**31], np.uint32)], 'g':torch.Generator().manual_seed(5)}
    tensors = {}
    back = unflatten_tree(json.loads(json.dumps(flatten_tree(tree, tensors))), tensors)
    assert list(back)==[0, 'x', 'g'] and back['x'][0]==(1, None) and back['x'][1] is True and back[0]['lr']==.1
    assert torch.equal(back[0]['avg'], tree[0]['avg']) and back['x'][2].tolist()==[0, 1, 2]
    assert torch.equal(torch.rand(2, generator=back['g']), torch.rand(2, generator=tree['g']))

def test_schedules_end_where_they_should():
    assert SCHEDULES['cosine'](1., ())['lr'](1)==pytest.approx(1e-4) and SCHEDULES['flat'](1., ())['lr'](.3)==1
    flat = SCHEDULES['flat_cosine'](1., ())['lr']
    assert flat(.5)==1 and flat(1)==pytest.approx(1e-5)

def test_no_rate_is_found_where_nothing_can_be_seen():
    learn = toy_learner()
    with pytest.raises(ConfigError, match='No learning rate was found'): find_lr(learn, num_it=4)
    assert learn.opt is None
