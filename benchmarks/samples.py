"The jets that are timed, and the files made of them"
from pathlib import Path
import numpy as np
from jetbook.data.hdf5 import sample
from jetbook.data.store import toy_jets, ConfigError
import jetbook.data.files

FULL = 139_306 # jets in the CMS Open Data file

def jets(n):
    "`n` quark/gluon jets: the shipped sample, again from its start where it ends"
    try: s = sample('qg')
    except ConfigError: s = toy_jets(2000)
    return s if n==len(s) else s.select(np.arange(n)%len(s))

def what(): s = jets(1); return s.source

def dense(tmp, name, n, **how):
    "A dense HDF5 file of `n` jets in the CMS layout; written once, read once, so that the page cache is hot"
    path = Path(tmp)/f'{name}_{n}.h5'
    if not path.exists(): jets(n).to_dense(path, **how)
    with open(path,'rb') as f:
        while f.read(2**24): pass
    return path

def nested(tmp, n):
    "A parquet file of `n` jets as the end-to-end production writes it: nested lists of doubles, a row group for each jet"
    import pyarrow as pa, pyarrow.parquet as pq
    path,store = Path(tmp)/f'nested_{n}.parquet',jets(n)
    if path.exists(): return path
    columns,writer = {k:store.columns[k].astype('f8') for k in ('y','pt','m0')},None
    for lo in range(0, n, 256):
        a = pa.array(store.images(range(lo,min(lo+256,n))).numpy().astype('f8').ravel())
        for s in (125,125,3): a = pa.ListArray.from_arrays(np.arange(0, len(a)+1, s, dtype=np.int32), a)
        part = pa.table({'X_jets':a, **{k:v[lo:lo+len(a)] for k,v in columns.items()}})
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part, row_group_size=1)
    writer.close()
    return path
