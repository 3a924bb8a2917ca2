"Compressed files through the command: written, read, and refused when they are damaged, made to harm, or another model's"
import hashlib, json, struct, subprocess, sys, zlib

import pytest

from test_cli import here, jetbook

pytest.importorskip('constriction'); pytest.importorskip('zstandard')

TRAIN = '--epochs 1 --set hidden=8 --set bs=32 --set steps=[0.001,0.5] --set step=0.02 -q'.split()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Toy jets, two trained codes, and a compressed file of the first"
    from jetbook.data.store import toy_jets
    d = tmp_path_factory.mktemp('compress')
    toy_jets(120, 'wqcd').save(d/'w.jets.h5')
    toy_jets(8).save(d/'qg.jets.h5')
    for name,seed in (('code',0),('other',1)): assert here('train', 'pixel_code', d/'w.jets.h5', '-o', d/name, '--seed', seed, *TRAIN)[0]==0
    assert here('compress', d/'code', d/'w.jets.h5', '-o', d/'w.jetz', '--block', 50, '-q')[0]==0
    return d

def refused(folder, data, *words, model='code', process=False):
    "`decompress` of these bytes must fail with one clear message and leave nothing behind"
    (folder/'bad.jetz').write_bytes(data)
    before = sorted(p.name for p in folder.iterdir())
    args = ('decompress', folder/'bad.jetz', '-m', folder/model, '-o', folder/'bad.jets.h5', '-q')
    r = jetbook(*args, status=1) if process else None
    status,out,err = (r.returncode,r.stdout,r.stderr) if process else here(*args)
    assert status==1 and out=='' and err.startswith('jetbook: ') and 'Found: ' in err and sorted(p.name for p in folder.iterdir())==before
    for w in words: assert w in err, err

def parts(data):
    "Header and the bytes after it"
    n, = struct.unpack('<I', data[8:12])
    return json.loads(data[16:16+n]), data[16+n:-32]

def build(head, blocks, raw=None):
    "A file with sound check sums, whatever is in it"
    text = json.dumps(head).encode() if raw is None else raw
    body = b'jetz\r\n\x1a\x01'+struct.pack('<II', len(text), zlib.crc32(text))+text+blocks
    return body+hashlib.sha256(body).digest()

def block(n, data=b'', cols=b'', check=0): return struct.pack('<IIIII', n, len(data), len(cols), zlib.crc32(cols, zlib.crc32(data)), check)+data+cols

END = block(0)[:12]+bytes(8)

def test_there_and_back(folder):
    from jetbook.codec.files import make_codec
    from jetbook.codec.codes import quantise
    from jetbook.data.store import JetStore
    r = jetbook('compress', 'code', 'w.jets.h5', '-o', 'a.jetz', '--step', '0.05', '--json', cwd=folder)
    i = json.loads(r.stdout)
    assert i['jets']==120 and i['step']==.05 and i['bytes']==(folder/'a.jetz').stat().st_size and 'compress: 100%' in r.stderr
    r = jetbook('decompress', 'a.jetz', '-m', 'code', '-o', 'a.jets.h5', cwd=folder)
    assert 'a.jets.h5: 120 jets' in r.stdout and '100%' in r.stderr
    a,b,q = JetStore(folder/'w.jets.h5'), JetStore(folder/'a.jets.h5'), make_codec(folder/'code', .05).coder.quantiser
    lv = quantise(a, q)
    assert all((x==y).all() for x,y in zip(b.entries['pT'], (lv.offsets, lv.pixel, q.values(lv.level))))
    assert all((a.columns[k]==b.columns[k]).all() and a.columns[k].dtype==b.columns[k].dtype for k in a.columns)

def test_blocks_and_threads_change_nothing(folder):
    "Other processes, numbers of threads and machines read the same jets: the arithmetic is exact"
    from jetbook.data.store import JetStore
    code = "import sys, torch; torch.set_num_threads(int(sys.argv[1])); from jetbook.codec.files import decompress; decompress('w.jetz', 'code', sys.argv[2], progress=False)"
    import os
    for n in ('1','2'): subprocess.run([sys.executable, '-c', code, n, f't{n}.jets.h5'], cwd=folder, check=True, env={**os.environ, 'OMP_NUM_THREADS':n, 'OPENBLAS_NUM_THREADS':n})
    assert here('compress', folder/'code', folder/'w.jets.h5', '-o', folder/'one.jetz', '--block', 120, '-q')[0]==0
    assert here('decompress', folder/'one.jetz', '-m', folder/'code', '-o', folder/'one.jets.h5', '-q')[0]==0
    a,b,c = (JetStore(folder/f'{k}.jets.h5').entries['pT'] for k in ('t1','t2','one'))
    assert all((x==y).all() and (x==z).all() for x,y,z in zip(a,b,c))

def test_nothing_is_overwritten_unasked(folder):
    for verb,args in (('compress', ('code','w.jets.h5','-o','w.jetz')), ('decompress', ('w.jetz','-m','code','-o','w.jets.h5'))):
        status,out,err = here(verb, *(a if a.startswith('-') else folder/a for a in args), '-q')
        assert (status,out)==(1,'') and 'already exists' in err

def test_outputs_follow_the_one_rule(folder):
    "The source is not replaced, nor written through a link, and what a killed process left goes"
    import os
    from jetbook.codec.files import compress, decompress
    from jetbook.data.paths import OutputError
    before = (folder/'w.jets.h5').read_bytes(), (folder/'w.jetz').read_bytes()
    (folder/'link.jetz').symlink_to(folder/'elsewhere')
    for call,word in ((lambda: compress(folder/'code', folder/'w.jets.h5', folder/'w.jets.h5', progress=False), 'being read'),
                      (lambda: decompress(folder/'w.jetz', folder/'code', folder/'w.jetz', progress=False), 'being read'),
                      (lambda: compress(folder/'code', folder/'w.jets.h5', folder/'link.jetz', progress=False), 'a link')):
        with pytest.raises(OutputError, match=word): call()
    (folder/'link.jetz').unlink()
    assert ((folder/'w.jets.h5').read_bytes(), (folder/'w.jetz').read_bytes())==before and not (folder/'elsewhere').exists()

@pytest.mark.skipif(sys.platform=='win32', reason='SIGKILL')
def test_killed_compression_leaves_nothing_after_the_next(folder):
    from conftest import child
    from test_anomaly_trust import killed_at
    from jetbook.codec.files import compress
    d = folder/'killed'; d.mkdir()
    assert child(killed_at, 1, compress, folder/'code', folder/'w.jets.h5', d/'a.jetz', block=50, progress=False).signal
    assert [p.name.startswith('.jetbook-a.jetz.') for p in d.iterdir()]==[True]
    compress(folder/'code', folder/'w.jets.h5', d/'a.jetz', block=50, progress=False)
    assert [p.name for p in d.iterdir()]==['a.jetz'] and (d/'a.jetz').read_bytes()==(folder/'w.jetz').read_bytes()

def test_latent_dimensions_must_be_finite():
    import numpy as np
    from jetbook.codec.files import LatentCoder
    from jetbook.data.store import DataError
    c = LatentCoder(__import__('torch').nn.Identity(), .5, np.zeros(2, 'f4'), np.ones(2, 'f4'))
    with pytest.raises(DataError, match='1 of 3 jets'): c.encode(np.array([[0,1],[np.nan,0],[1,1]], 'f4'))

def test_another_model(folder):
    refused(folder, (folder/'w.jetz').read_bytes(), 'written with another model', model='other', process=True)

def test_what_cannot_be_compressed(folder):
    for args,word in ((('code','qg.jets.h5'),'one channel'), (('code','w.jets.h5','--step','9'),'not trained for this step'), (('code','w.jets.h5','--block','0'),'1 or more'), (('code','w.jets.h5','--block','99999'),'out of range'), (('nothing','w.jets.h5'),'nothing')):
        status,out,err = here('compress', folder/args[0], folder/args[1], *args[2:], '-o', folder/'no.jetz', '-q')
        assert status in (1,2) and out=='' and word in err, (args, err)
    assert not (folder/'no.jetz').exists()

@pytest.mark.parametrize('spoil,word', [
    (lambda d: b'', 'not a compressed file'), (lambda d: b'\x89PNG'+d[4:], 'not a compressed file'), (lambda d: d[:7]+b'\x09'+d[8:], 'newer version'),
    (lambda d: d[:40], 'damaged'), (lambda d: d[:-1], 'damaged'), (lambda d: d+b'x', 'damaged'),
    (lambda d: d[:len(d)//2]+bytes([d[len(d)//2]^4])+d[len(d)//2+1:], 'damaged'), (lambda d: d[:9]+b'\xff\xff\xff'+d[12:], 'damaged')],
    ids=['empty','other magic','newer','stump','one byte short','one byte more','one bit','header size'])
def test_damaged(folder, spoil, word): refused(folder, spoil((folder/'w.jetz').read_bytes()), word)

def test_damaged_as_a_process(folder): refused(folder, (folder/'w.jetz').read_bytes()[:-1], 'damaged', process=True)

@pytest.mark.parametrize('change', [dict(jets=10**15), dict(jets=-1), dict(jets=3), dict(height=10**9), dict(height=0), dict(channels=[]), dict(channels=['a/b']), dict(channels=['pT','pT'], upsample=[1,1]), dict(channels=['pT','x'], upsample=[1,1]),
    dict(upsample=[0]), dict(upsample=['5']), dict(columns={'y':'|O'}), dict(columns={'y':'<f16'}), dict(columns={'a/b':'<f4'}), dict(columns={}), dict(config=dict(step=1e9)), dict(config=dict(step='x')), dict(config=dict(stepp=.1)), dict(config=dict(run='/etc')),
    dict(codec=None), dict(model='0'*64), dict(source=1), dict(cell=-1.), dict(cell=float('nan')), dict(cell='0.1')], ids=lambda c: json.dumps(c)[:40])
def test_headers_that_lie(folder, change):
    "The check sums are right, what they cover isn't"
    head,blocks = parts((folder/'w.jetz').read_bytes())
    refused(folder, build({**head, **change}, blocks))

@pytest.mark.parametrize('raw', [b'', b'[]', b'{', b'['*100000, b'{"jets":1e999}', b'\xff\xfe'], ids=repr)
def test_headers_that_are_none(folder, raw): refused(folder, build({}, END, raw[:100000]), 'damaged')

def test_blocks_that_lie(folder):
    head,blocks = parts((folder/'w.jetz').read_bytes())
    n,a,b,crc,check = struct.unpack('<IIIII', blocks[:20])
    data,cols,rest = blocks[20:20+a], blocks[20+a:20+a+b], blocks[20+a+b:]
    assert build(head, block(n,data,cols,check)+rest)==(folder/'w.jetz').read_bytes()
    refused(folder, build(head, struct.pack('<IIIII', 2**32-1, a, b, crc, check)+blocks[20:]), 'damaged')   # jets without end
    refused(folder, build(head, struct.pack('<IIIII', n, 2**32-1, b, crc, check)+blocks[20:]), 'damaged')   # more bytes than there are
    refused(folder, build(head, blocks[:20+a+b]), 'damaged')                                               # no last block
    refused(folder, build(head, block(n,data,cols,check)), 'damaged')
    refused(folder, build(head, block(n,data,cols,check)+END), 'damaged')                                  # fewer jets than promised
    refused(folder, build(head, blocks+b'more'), 'damaged')                                                # something after the end
    refused(folder, build(head, block(n,data,cols,check^1)+rest), 'not decoded to what was written')
    refused(folder, build(head, block(n,data[::-1],cols,check)+rest))                                      # noise: whatever it decodes to, it isn't the jets
    refused(folder, build(head, block(n,b'\xff'*len(data),cols,check)+rest))
    refused(folder, build(head, block(n,data[:-1],cols,check)+rest), 'multiple of 4')
    refused(folder, build(head, block(n,b'',cols,check)+rest))
    refused(folder, build(head, block(n,data,b'columns',check)+rest), 'damaged')
    refused(folder, build(head, block(n,data,b'',check)+rest), 'damaged')

def test_a_bomb_of_columns_takes_no_memory(folder):
    "A few kilobytes that unpack to gigabytes are not unpacked"
    import zstandard
    head,blocks = parts((folder/'w.jetz').read_bytes())
    n,a,b,crc,check = struct.unpack('<IIIII', blocks[:20])
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(2**31))
    (folder/'bomb.jetz').write_bytes(build(head, block(n, blocks[20:20+a], bomb, check)+blocks[20+a+b:]))
    refused(folder, (folder/'bomb.jetz').read_bytes(), 'bytes of columns')
    code = ("import resource; from jetbook.codec.files import decompress; from jetbook.data.store import DataError; from jetbook.train.runs import Run\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024\n"
            "Run('code').model; start = peak()\n"                              # all that is needed anyway is in memory
            "try: decompress('bomb.jetz', 'code', progress=False)\n"
            "except DataError: print(peak()-start)")
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert r.stdout and int(r.stdout) < 500, r.stdout+r.stderr

def test_an_autoencoder_as_a_code(folder):
    assert here('train', 'dense_ae', folder/'w.jets.h5', '-o', folder/'ae', '--epochs', 1, '--set', 'bottleneck=100', '-q')[0]==0
    assert here('compress', folder/'ae', folder/'w.jets.h5', '-o', folder/'ae.jetz', '--step', '0.5', '-q')[0]==0
    status,out,err = here('decompress', folder/'ae.jetz', '-m', folder/'ae', '-o', folder/'ae.jets.h5', '-q')
    assert status==0 and 'ae.jets.h5: 120 jets' in out, err
    data = (folder/'ae.jetz').read_bytes(); head,blocks = parts(data)
    refused(folder, data, 'another model')
    many = dict(centre=[0.]*2**18, spread=[1.]*2**18, shape=[2**18])   # latent dimensions that the model doesn't have: gigabytes a block
    refused(folder, build({**head, 'config':{**head['config'], **many}}, blocks), 'settings that are not valid', model='ae')
    for k,v in (('spread',[1.]), ('centre',['x']*100), ('shape',[2**40]), ('shape',[]), ('spread',[float('inf')]*100)):
        refused(folder, build({**head, 'config':{**head['config'], k:v}}, blocks), model='ae')
    n,a,b,crc,check = struct.unpack('<IIIII', blocks[:20])
    for bad in (b'', struct.pack('<iII', 0, 2**31, 4)+bytes(40), struct.pack('<iII', 0, 2, 2)+b'\0\0'+bytes(40), blocks[20:24]+b'\xff'*(a-4)):
        refused(folder, build(head, block(n,bad,blocks[20+a:20+a+b],check)+blocks[20+a+b:]), model='ae')
