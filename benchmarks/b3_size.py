"B3: bytes on disk and in memory for as many jets as the CMS file has"
import tempfile
from pathlib import Path
from timing import fresh_process, number, show, table
import numpy as np, scipy.sparse
from samples import FULL, dense, jets, what

OPEN = """
import numpy as np
from jetbook.data.store import JetStore, toy_jets
toy = toy_jets(512); toy.images(np.arange(256), out=toy.buffer(256)); del toy # the compiled code is loaded
rng,before = np.random.default_rng(0),status('VmRSS')
store = JetStore(sys.argv[1]); opened = status('VmRSS')-before
buf = store.buffer(256)
for _ in range(200): store.images(np.sort(rng.choice(len(store), 256, False)), out=buf)
print(json.dumps(dict(opened=opened, drawn=status('VmRSS')-before, total=status('VmRSS'), buffer=buf.array.nbytes)))
"""

def parquet_bytes(x, path):
    import pyarrow as pa, pyarrow.parquet as pq
    a = pa.array(x.transpose(0,3,1,2).ravel())
    for s in (125,125,3): a = pa.ListArray.from_arrays(np.arange(0,len(a)+1,s,dtype=np.int32), a)
    pq.write_table(pa.table(dict(X_jets=a)), path, compression='zstd', row_group_size=256)
    return path.stat().st_size

def main(tmp, quick=False):
    tmp,n = Path(tmp),512 if quick else 4096
    full = jets(FULL); path = full.save(tmp/'full.jets.h5')
    x = jets(n).images().permute(0,2,3,1).contiguous().numpy()
    scale,dense_bytes = FULL/n,FULL*46875*4
    csr = scipy.sparse.csr_matrix(x.reshape(n,-1))
    scipy.sparse.save_npz(tmp/'csr.npz', csr, compressed=True)
    csr_mem = (csr.data.nbytes+csr.indices.nbytes+csr.indptr.nbytes)*scale
    entries,lit = sum(len(p) for _,p,_ in full.entries.values()),int((x!=0).sum()*scale)
    mem = fresh_process(OPEN, path)
    rows = [['dense float32 (computed)', dense_bytes, dense_bytes], ['HDF5 + gzip, 16-jet chunks (scaled)', dense(tmp,'gzip',n,chunks=(16,125,125,3),compression='gzip').stat().st_size*scale, dense_bytes],
            ['parquet + zstd, nested lists (scaled)', parquet_bytes(x, tmp/'x.parquet')*scale, dense_bytes], ['scipy CSR, compressed on disk (scaled)', (tmp/'csr.npz').stat().st_size*scale, csr_mem],
            ['**`JetStore`**', path.stat().st_size, mem['opened']],
            ['limit: 2 + 4 bytes an entry of the detector', entries*6, entries*6], ['the same, for each lit pixel', lit*6, lit*6]]
    def _mb(b): return f'{b/1e6:,.1f}'
    return '\n\n'.join([f'## B3: {FULL:,} jets on disk and in memory',
        f'Jets: {what()}; those of the shipped sample again and again. Rows marked scaled were measured on {n:,} jets. In memory: what must be held to draw any batch.',
        table(['form','on disk, MB','times smaller','in memory, MB','times smaller'], [[k, _mb(d), number(dense_bytes/d), _mb(m), number(dense_bytes/m)] for k,d,m in rows]),
        f'Resident memory of a fresh process, beyond the imported library: {_mb(mem["opened"])} MB once the store is open, {_mb(mem["drawn"])} MB after 200 random batches of 256 '
        f'(the batch buffer is {_mb(mem["buffer"])} MB of it); {_mb(mem["total"])} MB in all, PyTorch and numba included. {full.nbytes/FULL:.0f} bytes a jet, {entries/FULL:.0f} entries, {lit/FULL:.0f} lit pixels of 46,875.'])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
